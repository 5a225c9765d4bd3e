// Command scale works out what a fleet of TierGate needs: how many instances, how many
// servers of Redis, and which of them is full first. It plays the requests of the busiest
// server, and prints the tables of docs/scaling.md. With -measure it measures on this
// machine what the tables begin with.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("scale", flag.ContinueOnError)
	measuring := flags.Bool("measure", false, "start a redis-server and measure what the tables begin with")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	if *measuring {
		return measure(ctx, out)
	}
	_, err := io.WriteString(out, Tables())
	return err
}
