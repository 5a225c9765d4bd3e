package main

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/tiergate/tiergate/internal/config"
	"github.com/tiergate/tiergate/internal/envoyapi"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/rpc"
	"github.com/tiergate/tiergate/internal/store"
	"github.com/tiergate/tiergate/internal/usage"
	"github.com/tiergate/tiergate/internal/web"
)

// serve answers Envoy until ctx is done, then drains.
func serve(ctx context.Context, args []string, env environment) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	options := config.Options{Getenv: env.getenv, Now: time.Now}
	configFlags(flags, &options)
	if err := parse(flags, args, env); err != nil {
		return err
	}
	loaded, sources, err := load(options)
	if err != nil {
		return err
	}
	signal.Ignore(syscall.SIGPIPE) // else it would end, without a word, with whoever reads its log
	log := newLogger(env.stderr, loaded.Start)
	store.LogRedis(log)
	memory := tuneGC(env.getenv, os.DirFS("/"))
	defer runtime.KeepAlive(memory.floor)
	log.DebugContext(ctx, "garbage collection", "heap_floor", memory.floor.Cap(), "memory_limit", memory.limit)
	log.DebugContext(ctx, "timers", "slack", slackOfTimers())
	s, err := newServer(loaded, log) //nolint:contextcheck // nothing in it waits
	if err != nil {
		return err
	}
	return s.run(ctx, &reloader{options: options, use: s.use, metrics: s.metrics, log: s.log, start: loaded.Start}, loaded, sources)
}

func newLogger(w io.Writer, c config.Start) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogJSON {
		options.ReplaceAttr = durationAsText
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// durationAsText has durations in JSON as "5s", as they are in text, where slog writes
// nanoseconds.
func durationAsText(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

// A server is the program's parts, wired.
type server struct {
	start     config.Start
	log       *slog.Logger
	metrics   *metrics
	stores    stores
	ticketKey *envoyapi.TicketKey
	directory *directory
	recorder  *usage.Recorder
	pulse     *pulse
	tracing   *tracing
	gate      *envoyapi.Gate
	customers *web.Customers
	admin     *web.Admin
	operator  http.Handler
	grpc      *rpc.Server
	health    *grpchealth.Server
	tls       *listenerTLS // of grpc; nil: it serves in clear
	bounds    *bounds

	accessLog *envoyapi.AccessLog
	goesOn    atomic.Bool // whether requests of any tier are answered while Redis is away
}

// historySize is how many pairs of a key and a resource are remembered, of some 300
// bytes each.
const historySize = 50_000

func newServer(c *config.Config, log *slog.Logger) (*server, error) {
	s := &server{start: c.Start, log: log, metrics: newMetrics(), health: grpchealth.NewServer()}
	s.directory = newDirectory(c.Reload, s.metrics, log)
	instance := newInstanceID()
	s.noteOnFailure(c.Reload.Plans)
	s.metrics.capacity.use(c.Reload.Pools)
	var err error
	w := watcher{instance, s.metrics, log}
	if s.stores, err = openStores(c.Start.Store, c.Reload.Redis, s.directory.notices(), newSnapshotNotices(s.metrics, log), w); err != nil {
		return nil, err
	}
	s.addUsage(instance)
	if s.tracing, err = newTracing(c.Start.Tracing, s.metrics, log, instance); err != nil {
		return nil, errors.Join(err, s.stores.close())
	}
	secret := sessionSecret(c.Start, log)
	s.ticketKey = envoyapi.NewTicketKey(ticketKey(secret))
	limiter := quota.NewLimiter(s.tracing.counts(s.watchedCounts()))
	s.gate = envoyapi.NewGate(s.settings(c.Reload), limiter, usage.NewHistory(historySize), time.Now, s.tracing.observer(newObserver(s.metrics, s.recorder, log)))
	if err := s.addWeb(c, limiter, secret); err != nil {
		return nil, errors.Join(err, s.stores.close())
	}
	s.tls, s.bounds = newListenerTLS(c.Start.Listener, c.Reload.Listener, s.metrics, log), newBounds(c.Start.Listener, s.metrics)
	s.addGRPC()
	return s, nil
}

// addUsage makes what counts for the dashboards.
func (s *server) addUsage(id string) {
	var lastWait time.Duration // as usual
	if s.start.Store.File != "" {
		lastWait = lastUsage
	}
	s.recorder = usage.NewRecorder(usage.RecorderOptions{
		Instance: id, Now: time.Now, Interval: s.start.UsageInterval, MaxCells: s.start.UsageMaxSeries, LastWait: lastWait,
		OnError: func(err error) {
			if err != nil {
				s.log.Warn("usage cannot be written: it is kept until it can", "error", err)
				return
			}
			s.log.Info("usage is written again")
		},
	})
	s.metrics.addUsage(s.recorder)
	s.pulse = &pulse{
		id: id, started: time.Now(), keys: func() int { return s.gate.Keys().Len() }, ping: s.stores.counts.Ping, tell: s.stores.usage.Tell,
		decided: s.metrics.decided(), log: s.log,
	}
}

// sessionSecret returns the secret that the fleet shares, or one of this process.
func sessionSecret(c config.Start, log *slog.Logger) []byte {
	secret := []byte(c.SessionSecret.Reveal())
	if len(secret) > 0 {
		return secret
	}
	if c.Store.Redis {
		log.Warn("sign-ins to the dashboard hold for this instance only, and so does what it notes of keys without limits on tokens: " +
			"set customer.session_secret_file, the same for all")
	}
	return []byte(rand.Text() + rand.Text())
}

// ticketKey is the key of another use of a secret.
func ticketKey(secret []byte) []byte {
	mac := hmac.New(sha256.New, secret)
	_, _ = mac.Write([]byte("tickets")) // never fails, see hash.Hash
	return mac.Sum(nil)
}

// addWeb makes what serves HTTP.
func (s *server) addWeb(c *config.Config, limiter *quota.Limiter, secret []byte) error {
	var err error
	s.customers, err = web.NewCustomers(web.CustomersOptions{
		Accounts: s.accounts(c.Reload), Limiter: limiter, Usage: s.stores.usage, SessionSecret: secret, Log: s.log, Now: time.Now,
	})
	if err != nil {
		return err
	}
	s.admin = web.NewAdmin(web.AdminOptions{
		Accounts: s.adminAccounts(c.Reload), Keys: s.stores.keys, Stored: s.directory.stored, Usage: s.stores.usage, Fleet: s.stores.usage,
		Limiter: limiter, Explainer: explainer{s.gate}, Loopback: c.Start.Operator.Loopback(), Now: time.Now,
	})
	s.operator, err = web.Operator(web.OperatorOptions{Metrics: s.metrics.registry, Ready: s.ready, Admin: s.admin})
	return err
}

// addGRPC makes what serves Envoy.
func (s *server) addGRPC() {
	options := s.bounds.options()
	options.Codec, options.Unary, options.Stream, options.Stats = envoyapi.Codec{}, s.survive, s.surviveStream, s.tracing.handler()
	if s.tls != nil {
		options.Credentials = s.tls.credentials()
	}
	s.grpc = rpc.NewServer(options)
	envoyapi.NewAuthz(s.gate).Register(s.grpc)
	envoyapi.NewRateLimit(s.gate).Register(s.grpc)
	s.accessLog = envoyapi.NewAccessLog(s.gate)
	s.accessLog.Register(s.grpc)
	healthpb.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	for name := range s.grpc.GetServiceInfo() {
		s.health.SetServingStatus(name, healthpb.HealthCheckResponse_SERVING)
	}
}

// run listens and owns every goroutine of the program.
func (s *server) run(ctx context.Context, r *reloader, c *config.Config, sources config.Sources) error {
	l, err := listenAll(ctx, s.start)
	if err != nil {
		return err
	}
	l = s.bounds.all(l)
	operator := s.httpServer(s.operator, 30*time.Second)
	customer := s.httpServer(s.customers.Handler(), 10*time.Second)
	r.loaded(c, sources)

	group, ctx := errgroup.WithContext(ctx)
	// Changes of keys are taken up, and usage is written, until the last request has
	// been answered.
	answering, answered := context.WithCancel(context.WithoutCancel(ctx))
	group.Go(func() error { return s.stores.keys.Watch(answering, s.directory.apply) })
	s.directory.await(ctx)
	s.log.InfoContext(ctx, "serving", "grpc", s.start.GRPC.String(), "operator", s.start.Operator.String(), "customer", s.start.Customer.String(),
		"redis", s.start.Store.Redis, "keys", s.keyring(c.Reload).Len(), "demo_keys_allowed", c.Reload.AllowDemoKeys)

	if !s.start.Store.Redis && s.start.Store.File == "" {
		s.log.WarnContext(ctx, "the store is in memory alone: keys made by the admin API, counts and usage end with this process: set store.memory.file, or store.type=redis")
	}
	if len(c.Reload.AdminTokens) == 0 {
		s.tellNoTokens(ctx)
	}
	group.Go(func() error { return s.serveGRPC(l.grpc) }) //nolint:contextcheck // calls have contexts of their own
	group.Go(func() error { return serveHTTP(operator, l.operator, "operators") })
	group.Go(func() error { return serveHTTP(customer, l.customer, "customers") })
	group.Go(func() error { return r.run(ctx) })
	if s.stores.sweep != nil {
		group.Go(func() error { return s.stores.sweep(ctx) })
	}
	if s.stores.keep != nil {
		group.Go(func() error { return s.stores.keep(answering) })
	}
	group.Go(func() error { return s.pulse.run(ctx) })
	group.Go(func() error { return s.runFallback(answering) })
	group.Go(func() error {
		if err := s.recorder.Run(answering, s.stores.usage); err != nil {
			s.log.WarnContext(ctx, "not all usage was written", "error", err)
		}
		return nil
	})
	group.Go(func() error {
		defer answered()
		<-ctx.Done()
		s.drain(context.WithoutCancel(ctx), operator, customer)
		return nil
	})
	err = endWithin(answering.Done(), lastWrites, func() error { return errors.Join(group.Wait(), s.stores.close()) })
	s.tracing.close(ctx)
	if err != nil {
		return err
	}
	s.log.InfoContext(ctx, "stopped")
	return nil
}

// tellNoTokens says whom the admin API answers without tokens.
func (s *server) tellNoTokens(ctx context.Context) {
	if s.start.Operator.Loopback() {
		s.log.InfoContext(ctx, "no operator.tokens are configured: the admin API and the operators' dashboard answer this machine only")
		return
	}
	s.log.WarnContext(ctx, "no operator.tokens are configured, and operator.address is not one of this machine alone: the admin API and the operators' dashboard answer nobody: "+
		"configure a token, or set operator.address to 127.0.0.1", "operator", s.start.Operator.String())
}

func (s *server) serveGRPC(l net.Listener) error {
	if err := s.grpc.Serve(l); err != nil {
		return fmt.Errorf("serve Envoy: %w", err)
	}
	return nil
}

// httpServer returns a server that logs what goes wrong in it as the program does.
func (s *server) httpServer(h http.Handler, readTimeout time.Duration) *http.Server {
	return &http.Server{
		Handler: s.surviveHTTP(h), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: readTimeout, WriteTimeout: time.Minute, MaxHeaderBytes: maxHeaderBytes, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
}

func serveHTTP(server *http.Server, l net.Listener, who string) error {
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", who, err)
	}
	return nil
}

// drain stops in the order that loses nothing: health first, so that Envoy
// turns elsewhere, then the listener, then the requests in flight are answered.
func (s *server) drain(ctx context.Context, operator, customer *http.Server) {
	s.log.InfoContext(ctx, "draining", "delay", s.start.ShutdownDelay, "timeout", s.start.ShutdownTimeout)
	s.health.Shutdown()
	pause(s.start.ShutdownDelay)
	s.accessLog.Drain()
	deadline := time.AfterFunc(s.start.ShutdownTimeout, s.grpc.Stop)
	s.grpc.GracefulStop()
	deadline.Stop()
	inTime, cancel := context.WithTimeout(ctx, s.start.ShutdownTimeout)
	defer cancel()
	if s.stores.fallback != nil {
		s.stores.fallback.Drain(inTime) // usage counts what is completed
	}
	if err := customer.Shutdown(inTime); err != nil {
		s.log.WarnContext(ctx, "customers' requests were cut off", "error", err)
	}
	if err := operator.Shutdown(inTime); err != nil {
		s.log.WarnContext(ctx, "operators' requests were cut off: look whether their changes were made", "error", err)
	}
}

func pause(d time.Duration) {
	if d > 0 {
		<-time.After(d)
	}
}
