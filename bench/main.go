// Command bench measures TierGate: "make bench" runs its table and writes
// docs/performance.md. The parts can be run by themselves too:
//
//	bench table      measure every case beside what it is compared with
//	bench load       send load to a server that runs
//	bench canned     serve a canned answer: what gRPC and the protobufs cost
//
// Each has -h. It does not know how TierGate decides; it starts the built program.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run is the program.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return errors.New("want table, load or canned; each has -h")
	}
	flags := flag.NewFlagSet("bench "+args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	var command func() error
	switch args[0] {
	case "table":
		command = tableCommand(ctx, flags, stdout, stderr)
	case "load":
		command = loadCommand(ctx, flags, stdout)
	case "canned":
		listen := flags.String("listen", "127.0.0.1:0", "`address` to serve at")
		command = func() error { return serve(ctx, *listen, newCanned()) }
	default:
		return fmt.Errorf("unknown command %q: want table, load or canned; each has -h", args[0])
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return command()
}
