package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/tiergate/tiergate/internal/mockai"
)

// Options say what to start.
type Options struct {
	Root     string // of the project: where envoy/ and config/ are
	Dir      string // for generated files and logs
	TierGate string // the built program
	Envoy    Envoy
	Chain    string // ext_authz (default) or ratelimit
	Store    string // memory (default) or redis
	Config   string // default: the shipped config/tiergate.yaml
	Sets     []string
	Log      io.Writer // of TierGate; default: a file in Dir

	// Where to listen; default: free ports of 127.0.0.1. TierGate's may be
	// unix: and a path.
	API, TierGateAddress, Operator, RedisAddress string

	RedisRunning bool // somebody serves RedisAddress already

	// EditEnvoy changes the shipped Envoy file, for a case that it does not make
	// by itself; nil: nothing is changed but the addresses.
	EditEnvoy func([]byte) []byte
}

// startTimeout is how long a program may take until it answers.
const startTimeout = 20 * time.Second

// stopGrace is how long a program may take to stop.
const stopGrace = 15 * time.Second

// A Stack is a set of running programs.
type Stack struct {
	Addresses

	Options  Options
	Redis    *Process // nil: none
	Server   *Process // TierGate
	Proxy    *Process // Envoy
	upstream *http.Server
	logs     []io.Closer
}

// EnvoyFile returns the shipped Envoy file of a chain, relative to the root.
func EnvoyFile(chain string) (string, error) {
	files := map[string]string{"ext_authz": "envoy.yaml", "ratelimit": "ratelimit.yaml"}
	file, ok := files[chain]
	if !ok {
		return "", fmt.Errorf("unknown chain %q: want ext_authz or ratelimit", chain)
	}
	return filepath.Join("envoy", file), nil
}

// Up starts everything in order and waits until it answers. If something
// fails, what was started is stopped.
func Up(ctx context.Context, o Options) (*Stack, error) {
	s := &Stack{Options: o}
	if err := s.up(ctx); err != nil {
		return nil, errors.Join(err, s.Down())
	}
	return s, nil
}

func (s *Stack) up(ctx context.Context) error {
	if err := s.fillIn(); err != nil {
		return err
	}
	steps := []func(context.Context) error{s.StartUpstream, s.StartServer, s.StartProxy}
	switch s.Options.Store {
	case "memory":
	case "redis":
		if !s.Options.RedisRunning {
			steps = slices.Insert(steps, 0, s.StartRedis)
		}
	default:
		return fmt.Errorf("unknown store %q: want memory or redis", s.Options.Store)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// fillIn replaces what the options leave open.
func (s *Stack) fillIn() error {
	o := &s.Options
	o.Chain, o.Store = or(o.Chain, "ext_authz"), or(o.Store, "memory")
	o.Config = or(o.Config, filepath.Join(o.Root, "config", "tiergate.yaml"))
	for _, address := range []*string{&o.API, &o.TierGateAddress, &o.Operator, &o.RedisAddress, &s.Admin, &s.Upstream} {
		if *address != "" {
			continue
		}
		free, err := FreeAddress()
		if err != nil {
			return err
		}
		*address = free
	}
	s.API, s.TierGate = o.API, o.TierGateAddress
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return fmt.Errorf("make the directory for logs: %w", err)
	}
	return nil
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// The ports that FreeAddress hands out. They lie below those that systems give to
// outgoing connections, which would take them before they are listened at.
const (
	firstPort = 15_000
	lastPort  = 32_000
)

// FreeAddress returns an address of 127.0.0.1 that nobody listens at. It is chosen
// by chance, so that programs that ask at the same time get different ones.
func FreeAddress() (string, error) {
	var err error
	for range 100 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(firstPort+rand.IntN(lastPort-firstPort)))
		var l net.Listener
		if l, err = net.Listen("tcp", address); err == nil { //nolint:noctx // ends at once
			return address, l.Close()
		}
	}
	return "", fmt.Errorf("find a free port from %d to %d: %w", firstPort, lastPort, err)
}

// StartRedis starts a Redis server that keeps nothing on disk.
func (s *Stack) StartRedis(ctx context.Context) error {
	if _, err := exec.LookPath("redis-server"); err != nil {
		return fmt.Errorf("find redis-server: %w: install it (Debian: apt-get install redis-server; macOS: brew install redis)", err)
	}
	host, port, err := net.SplitHostPort(s.Options.RedisAddress)
	if err != nil {
		return fmt.Errorf("start Redis at %q: %w", s.Options.RedisAddress, err)
	}
	words := []string{"redis-server", "--bind", host, "--port", port, "--save", "", "--appendonly", "no", "--dir", s.Options.Dir}
	if s.Redis, err = s.start("redis", words, nil); err != nil {
		return err
	}
	return s.await(ctx, "redis-server", s.Redis, func(ctx context.Context) error {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", s.Options.RedisAddress)
		if err != nil {
			return fmt.Errorf("reach Redis: %w", err)
		}
		return conn.Close()
	})
}

// StartUpstream serves the mock AI API.
func (s *Stack) StartUpstream(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.Upstream)
	if err != nil {
		return fmt.Errorf("listen for the mock upstream: %w", err)
	}
	server := &http.Server{Handler: mockai.Handler(), ReadHeaderTimeout: 5 * time.Second}
	s.upstream = server
	go func() { _ = server.Serve(l) }() // ends by Close
	return nil
}

// StopUpstream makes the upstream refuse connections.
func (s *Stack) StopUpstream() error {
	if s.upstream == nil {
		return nil
	}
	if err := s.upstream.Close(); err != nil {
		return fmt.Errorf("stop the mock upstream: %w", err)
	}
	return nil
}

// StartServer starts TierGate and waits until it is healthy.
func (s *Stack) StartServer(ctx context.Context) error {
	o := s.Options
	words := []string{o.TierGate, "serve", "--config", o.Config}
	for _, set := range append([]string{
		"allow_demo_keys=true", "grpc.address=" + o.TierGateAddress, "operator.address=" + o.Operator,
		"store.type=" + o.Store, "store.redis.address=" + o.RedisAddress,
	}, o.Sets...) {
		words = append(words, "--set", set)
	}
	var err error
	if s.Server, err = s.start("tiergate", words, o.Log); err != nil {
		return err
	}
	return s.await(ctx, "TierGate", s.Server, s.healthy)
}

// healthy asks TierGate by the gRPC health protocol.
func (s *Stack) healthy(ctx context.Context) error {
	conn, err := grpc.NewClient(s.TierGate, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("reach TierGate: %w", err)
	}
	defer conn.Close()
	response, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return fmt.Errorf("ask TierGate for its health: %w", err)
	}
	if status := response.GetStatus(); status != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("TierGate answers %s", status)
	}
	return nil
}

// StartProxy starts Envoy with the chain's shipped file, set to the stack's
// addresses, and waits until it is ready.
func (s *Stack) StartProxy(ctx context.Context) error {
	file, err := EnvoyFile(s.Options.Chain)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(filepath.Join(s.Options.Root, file))
	if err != nil {
		return fmt.Errorf("read the Envoy file: %w", err)
	}
	if s.Options.EditEnvoy != nil {
		content = s.Options.EditEnvoy(content)
	}
	if content, err = SetAddresses(content, s.Addresses); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	path := filepath.Join(s.Options.Dir, "envoy.yaml")
	if err := os.WriteFile(path, content, 0o644); err != nil { // Envoy may run as another user
		return fmt.Errorf("write the Envoy file: %w", err)
	}
	words := s.Options.Envoy.Command(s.Options.Dir, "--config-path", path, "--log-level", "warning", "--concurrency", "2")
	if s.Proxy, err = s.start("envoy", words, nil); err != nil {
		return err
	}
	return s.await(ctx, "Envoy", s.Proxy, func(ctx context.Context) error {
		return getOK(ctx, "http://"+s.Admin+"/ready")
	})
}

func getOK(ctx context.Context, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("get %s: %w", url, err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return fmt.Errorf("get %s: %w", url, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", url, response.Status)
	}
	return nil
}

// start starts a program whose output goes to out, or to a log file.
func (s *Stack) start(name string, words []string, out io.Writer) (*Process, error) {
	if out == nil {
		file, err := os.OpenFile(s.LogFile(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return nil, fmt.Errorf("open a log: %w", err)
		}
		s.logs = append(s.logs, file)
		out = file
	}
	return Start(name, words, nil, out)
}

// LogFile returns the log of a program: tiergate, envoy or redis.
func (s *Stack) LogFile(name string) string { return filepath.Join(s.Options.Dir, name+".log") }

// await asks until the answer is nil.
func (s *Stack) await(ctx context.Context, name string, p *Process, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.Done():
			return fmt.Errorf("%s ended while starting (%w): see the logs in %s", name, p.err, s.Options.Dir)
		case <-ctx.Done():
			return fmt.Errorf("%s did not answer: %w: see the logs in %s", name, err, s.Options.Dir)
		case <-tick.C:
		}
	}
}

// Wait returns when ctx is done, or an error when a program ends before.
func (s *Stack) Wait(ctx context.Context) error {
	var redis <-chan struct{}
	if s.Redis != nil {
		redis = s.Redis.Done()
	}
	select {
	case <-ctx.Done():
		return nil
	case <-s.Server.Done():
		return errors.New("TierGate ended by itself")
	case <-s.Proxy.Done():
		return fmt.Errorf("envoy ended by itself: see %s", s.LogFile("envoy"))
	case <-redis:
		return fmt.Errorf("redis-server ended by itself: see %s", s.LogFile("redis"))
	}
}

// Down stops everything, the edge first.
func (s *Stack) Down() error {
	var errs []error
	for _, p := range []*Process{s.Proxy, s.Server, s.Redis} {
		if p != nil {
			errs = append(errs, p.Stop(stopGrace))
		}
	}
	errs = append(errs, s.StopUpstream())
	for _, l := range s.logs {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
