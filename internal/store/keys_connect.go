package store

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// watchDial is how long it may take to connect.
const watchDial = time.Second

// watchOptions are those of a client that watches: like another client's, but with time
// to read much, and never waiting long to connect again.
func watchOptions(o *redis.Options) redis.Options {
	options := *o
	options.PushNotificationProcessor = nil // made anew
	options.DialTimeout, options.DialerRetries = watchDial, 1
	options.ReadTimeout, options.WriteTimeout, options.PoolTimeout = keysTimeout, keysTimeout, keysTimeout
	options.PoolSize, options.MinIdleConns, options.MaxRetries = 2, 0, -1
	options.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return options
}

// A dialer connects to Redis.
type dialer = func(ctx context.Context, network, address string) (net.Conn, error)

// connected connects, and returns a dialer that hands out that connection first: a client
// that cannot connect logs each attempt. The connections end with ctx. Nothing else ends
// a read that waits for news.
func connected(ctx context.Context, o *redis.Options) (dialer, error) {
	dial := func(dialing context.Context, network, address string) (net.Conn, error) {
		conn, err := redis.NewDialer(o)(dialing, network, address)
		if err == nil {
			context.AfterFunc(ctx, func() { _ = conn.Close() })
		}
		return conn, err
	}
	conn, err := dial(ctx, o.Network, o.Addr)
	if err != nil {
		return nil, fmt.Errorf("connect to Redis: %w", err)
	}
	first := make(chan net.Conn, 1)
	first <- conn
	return func(dialing context.Context, network, address string) (net.Conn, error) {
		select {
		case conn := <-first:
			return conn, nil
		default:
			return dial(dialing, network, address)
		}
	}, nil
}
