// Command devstack serves TierGate through a real Envoy on this machine, to try
// it: "make run" builds and starts it. It stops all it started on Ctrl-C.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/tiergate/tiergate/internal/devstack"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "devstack: "+err.Error())
		os.Exit(1)
	}
}

const usage = `usage: devstack run     serve on http://127.0.0.1:10000 until interrupted

The environment chooses: CHAIN=ext_authz|ratelimit|ai-protocol STORE=memory|redis ENVOY=/path/to/envoy`

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	if len(args) != 1 || args[0] != "run" {
		return fmt.Errorf("unknown command line\n%s", usage)
	}
	root, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("find the project: %w", err)
	}
	cache := filepath.Join(root, ".cache")
	envoy, err := devstack.FindEnvoy(ctx, getenv, cache, stderr)
	if err != nil {
		return err
	}
	stack, err := devstack.Up(ctx, devstack.Options{
		Root:     root,
		Dir:      filepath.Join(cache, "run"),
		TierGate: filepath.Join(root, "bin", "tiergate"),
		Envoy:    envoy,
		Chain:    getenv("CHAIN"),
		Store:    getenv("STORE"),
		Keep:     true,
		Log:      stderr,

		API: "127.0.0.1:10000", TierGateAddress: "127.0.0.1:9001", Operator: "127.0.0.1:9002",
		CustomerAddress: "127.0.0.1:9003",
	})
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	fmt.Fprintf(stdout, welcome, stack.Options.Chain, stack.Options.Store, stack.Options.Dir)
	err = stack.Wait(ctx)
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

  curl -H 'Authorization: Bearer sk-demo-basic' http://127.0.0.1:10000/v1/limits

Other keys: sk-demo-free, sk-demo-pro, sk-demo-enterprise. Metrics: http://127.0.0.1:9002/metrics
Logs: %s. Ctrl-C stops everything.

`
