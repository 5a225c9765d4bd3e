package devstack

import (
	"cmp"
	"context"
	cryptorand "crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options say what to start.
type Options struct {
	Root     string // of the project: where envoy/ and config/ are
	Dir      string // for generated files and logs
	TierGate string // the built program
	Envoy    Envoy
	Chain    string // ext_authz (default), ratelimit or ai-protocol
	Store    string // memory (default) or redis
	Keep     bool   // whether keys and usage outlive the programs, in Dir
	Config   string // default: the shipped config/tiergate.yaml
	Sets     []string
	Log      io.Writer // of TierGate; default: a file in Dir

	// Where to listen; default: free ports of 127.0.0.1. TierGate's may be
	// unix: and a path.
	API, TierGateAddress, Operator, CustomerAddress, RedisAddress string

	// ServerTLS is how TierGate is asked for its health; nil: in clear.
	ServerTLS *tls.Config

	RedisRunning bool // somebody serves RedisAddress already
	ServerOnly   bool // TierGate without an Envoy and an upstream of its own

	// EditEnvoy changes the shipped Envoy file, for a case that it does not make
	// by itself; nil: nothing is changed but the addresses.
	EditEnvoy func([]byte) []byte
}

// startTimeout is how long a program may take until it answers: TierGate reads a million
// keys before.
const startTimeout = time.Minute

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

// envoyFile returns the shipped Envoy file of a chain, relative to the root.
func envoyFile(chain string) (string, error) {
	files := map[string]string{"ext_authz": "envoy.yaml", "ratelimit": "ratelimit.yaml", "ai-protocol": "ai-protocol.yaml"}
	file, ok := files[chain]
	if !ok {
		return "", fmt.Errorf("unknown chain %q: want ext_authz, ratelimit or ai-protocol", chain)
	}
	return filepath.Join("envoy", file), nil
}

// Check fails where the chain or the store is none that there is.
func (o Options) Check() error {
	if o.Store != "" && o.Store != "memory" && o.Store != "redis" {
		return fmt.Errorf("unknown store %q: want memory or redis", o.Store)
	}
	if o.Chain == "" {
		return nil
	}
	_, err := envoyFile(o.Chain)
	return err
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
	if s.Options.ServerOnly {
		steps = steps[1:2]
	}
	if s.Options.Store == "redis" && !s.Options.RedisRunning {
		steps = slices.Insert(steps, 0, s.StartRedis)
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
	if err := o.Check(); err != nil {
		return err
	}
	o.Chain, o.Store = cmp.Or(o.Chain, "ext_authz"), cmp.Or(o.Store, "memory")
	o.Config = cmp.Or(o.Config, filepath.Join(o.Root, "config", "tiergate.yaml"))
	for _, address := range []*string{&o.API, &o.TierGateAddress, &o.Operator, &o.CustomerAddress, &o.RedisAddress, &s.Admin, &s.Upstream} {
		if *address != "" {
			continue
		}
		free, err := FreeAddress()
		if err != nil {
			return err
		}
		*address = free
	}
	s.API, s.TierGate, s.Customer = o.API, o.TierGateAddress, o.CustomerAddress
	// Now, since an Envoy would share the port with another, and the health of
	// another TierGate would be taken for that of ours.
	for _, address := range []string{o.API, o.TierGateAddress, o.Operator, o.CustomerAddress} {
		if err := checkFree(address); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return fmt.Errorf("make the directory for logs: %w", err)
	}
	return nil
}

// The ports that FreeAddress hands out. They lie below those that systems give to
// outgoing connections, which would take them before they are listened at.
const (
	firstPort = 15_000
	lastPort  = 32_000
)

// handedOut are the addresses that this process has been given, listened at or not
// yet.
var handedOut sync.Map //nolint:gochecknoglobals // ports are the whole process's

// FreeAddress returns an address of 127.0.0.1 that nobody listens at, and never the
// same twice. It is chosen by chance, so that programs that ask at the same time get
// different ones.
func FreeAddress() (string, error) {
	var err error
	for range 100 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(firstPort+rand.IntN(lastPort-firstPort)))
		if _, given := handedOut.LoadOrStore(address, true); given {
			continue
		}
		if err = probe(address); err == nil {
			return address, nil
		}
	}
	return "", fmt.Errorf("find a free port from %d to %d: %w", firstPort, lastPort, err)
}

// checkFree fails where somebody listens at an address already.
func checkFree(address string) error {
	if strings.HasPrefix(address, "unix:") {
		return nil
	}
	if err := probe(address); err != nil {
		return fmt.Errorf("the address %s cannot be used: %w: stop what serves there", address, err)
	}
	return nil
}

// probe listens at an address for a moment. No program is started meanwhile: until it
// runs, it would hold the listener too, and the address with it.
func probe(address string) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	l, err := net.Listen("tcp", address) //nolint:noctx // ends at once
	if err != nil {
		return fmt.Errorf("listen at %s: %w", address, err)
	}
	return l.Close()
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

// AdminTokenFile holds the token of the admin API, which is named after the stack's
// user.
func (s *Stack) AdminTokenFile() string { return filepath.Join(s.Options.Dir, "admin-token") }

// SessionSecretFile holds the secret by which sign-ins to the dashboard are signed.
func (s *Stack) SessionSecretFile() string { return filepath.Join(s.Options.Dir, "session-secret") }

// secretFile returns a file with a secret of its own, which it makes once.
func (s *Stack) secretFile(name string) (string, error) {
	path, err := filepath.Abs(filepath.Join(s.Options.Dir, name))
	if err != nil {
		return "", fmt.Errorf("name the file of a secret: %w", err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return path, nil
	}
	if err != nil {
		return "", fmt.Errorf("make a secret: %w", err)
	}
	_, err = file.WriteString(cryptorand.Text() + cryptorand.Text())
	if err := errors.Join(err, file.Close()); err != nil {
		return "", fmt.Errorf("make a secret: %w", err)
	}
	return path, nil
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

// Wait returns when ctx is done, or an error when a program ends before. Of Redis, without
// which TierGate goes on, it writes to out how to start it again.
func (s *Stack) Wait(ctx context.Context, out io.Writer) error {
	var redis <-chan struct{}
	if s.Redis != nil {
		redis = s.Redis.Done()
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.Server.Done():
			return errors.New("TierGate ended by itself")
		case <-s.Proxy.Done():
			return fmt.Errorf("envoy ended by itself: see %s", s.LogFile("envoy"))
		case <-redis:
			redis = nil
			fmt.Fprintf(out, "\nRedis has ended (%v; see %s). TierGate goes on without it. To start it again, type this in another terminal, and end it there when make run has ended:\n\n  %s\n\n",
				s.Redis.cmd.ProcessState, s.LogFile("redis"), s.Redis.commandLine())
		}
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
