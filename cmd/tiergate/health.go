package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	grpcstatus "google.golang.org/grpc/status"
)

// health asks a running server by the gRPC health protocol.
func health(ctx context.Context, args []string, env environment) error {
	flags := flag.NewFlagSet("health", flag.ContinueOnError)
	address := flags.String("address", "127.0.0.1:9001", "the gRPC `address`: host:port or unix:/path/to/socket")
	var secured clientTLS
	secured.flags(flags)
	timeout := flags.Duration("timeout", 2*time.Second, "how long to wait")
	asJSON := flags.Bool("json", false, "print JSON")
	if err := parse(flags, args, env); err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(*address)
	if _, portErr := strconv.ParseUint(port, 10, 16); (err != nil || portErr != nil) && !strings.HasPrefix(*address, "unix:/") {
		return usagef("--address %q: want host:port or unix:/path/to/socket", *address)
	}
	if *timeout <= 0 {
		return usagef("--timeout %s: want more than nothing, such as 2s", *timeout)
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	credentials, err := secured.credentials()
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(*address, grpc.WithTransportCredentials(credentials))
	if err != nil {
		return fmt.Errorf("reach %s: %w", *address, err)
	}
	defer conn.Close()
	response, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		problem := grpcstatus.Convert(err).Message()
		return fmt.Errorf("ask %s for its health: %s: %s", *address, problem, secured.advice(problem))
	}
	status := response.GetStatus()
	if *asJSON {
		if err := printJSON(env.stdout, map[string]string{"status": status.String()}); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(env.stdout, status)
	}
	if status != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("%s answers %s: want SERVING", *address, status)
	}
	return nil
}
