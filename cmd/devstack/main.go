// Command devstack serves TierGate through a real Envoy on this machine, to try
// it, and sends sample traffic there: "make run" and "make traffic" build and start
// it. It stops all it started on Ctrl-C.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "devstack: "+err.Error())
		os.Exit(1)
	}
}

const usage = `usage: devstack run                serve on http://127.0.0.1:10000 until interrupted
       devstack traffic [flags]    send sample traffic there; -h lists the flags

For run the environment chooses: CHAIN=ext_authz|ratelimit|ai-protocol STORE=memory|redis ENVOY=/path/to/envoy`

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	switch {
	case len(args) == 1 && args[0] == "run":
		return serve(ctx, getenv, stdout, stderr)
	case len(args) > 0 && args[0] == "traffic":
		return sendTraffic(ctx, args[1:], stdout, stderr)
	case len(args) > 0 && slices.Contains([]string{"help", "-h", "-help", "--help"}, args[len(args)-1]):
		fmt.Fprintln(stdout, usage)
		return nil
	default:
		return fmt.Errorf("unknown command line\n%s", usage)
	}
}

func serve(ctx context.Context, getenv func(string) string, stdout, stderr io.Writer) error {
	root, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("find the project: %w", err)
	}
	cache := filepath.Join(root, ".cache")
	options := devstack.Options{
		Root:     root,
		Dir:      filepath.Join(cache, "run"),
		TierGate: filepath.Join(root, "bin", "tiergate"),
		Chain:    getenv("CHAIN"),
		Store:    getenv("STORE"),
		Keep:     true,
		Log:      stderr,

		API: "127.0.0.1:10000", TierGateAddress: "127.0.0.1:9001", Operator: "127.0.0.1:9002",
		CustomerAddress: "127.0.0.1:9003",
	}
	if err := options.Check(); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if options.Envoy, err = devstack.FindEnvoy(ctx, getenv, cache, stderr); err != nil {
		return err
	}
	stack, err := devstack.Up(ctx, options)
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	store := stack.Options.Store
	if stack.Redis != nil {
		store = fmt.Sprintf("redis at %s, process %d", stack.Options.RedisAddress, stack.Redis.PID())
	}
	fmt.Fprintf(stdout, welcome, stack.Options.Chain, store, stack.AdminTokenFile(), stack.Options.Dir)
	err = stack.Wait(ctx, stdout)
	fmt.Fprintln(stdout, "Stopping…")
	if stopErr := stack.Down(); stopErr != nil {
		return fmt.Errorf("stop: %w", stopErr)
	}
	return err
}

const welcome = `
TierGate serves at http://127.0.0.1:10000 (chain %s, store %s). Try:

  curl -i -H 'Authorization: Bearer sk-demo-basic' http://127.0.0.1:10000/v1/chat/completions \
    -H 'Content-Type: application/json' -d '{"model": "mock-1", "messages": [{"role": "user", "content": "Hi"}]}'

Other keys: sk-demo-free, sk-demo-pro, sk-demo-enterprise. Sample traffic, from
another terminal: make traffic. See what is used and what is left:

  http://127.0.0.1:10000/dashboard   as a customer; sign in with sk-demo-basic
  http://127.0.0.1:9002/             as an operator; sign in with the admin token in
                                     %s

Logs: %s. Ctrl-C stops everything.

`

func sendTraffic(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	t := devstack.Traffic{Out: stdout}
	flags := flag.NewFlagSet("devstack traffic", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&t.Address, "address", "127.0.0.1:10000", "where Envoy listens on this machine, `ip:port`")
	flags.Float64Var(&t.Rate, "rate", 15, "requests per second, on average")
	flags.DurationVar(&t.Duration, "duration", 2*time.Minute, "how long, at most 1h")
	flags.IntVar(&t.Requests, "requests", 0, "send no more than these; 0: any number")
	flags.Uint64Var(&t.Seed, "seed", 1, "of chance: the same one sends the same requests")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("read the flags: %w", err)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unknown argument %q: want flags only", flags.Arg(0))
	}
	if err := t.Check(); err != nil {
		return fmt.Errorf("sample traffic: %w", err)
	}
	look := fmt.Sprintf(lookAt, "http://"+t.Address+"/dashboard")
	fmt.Fprintf(stdout, "Sending sample traffic for %s; Ctrl-C ends it.\n%s\n", t.Duration, look)
	if err := t.Send(ctx); err != nil {
		return fmt.Errorf("sample traffic: %w", err)
	}
	fmt.Fprint(stdout, look)
	return nil
}

const lookAt = `
Where to look:
  %-32s   as a customer; sign in with sk-demo-basic
  http://127.0.0.1:9002/             as an operator
`
