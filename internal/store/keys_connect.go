package store

import (
	"context"
	"fmt"
	"net"

	"github.com/redis/go-redis/v9"
)

// A dialer connects to Redis.
type dialer = func(ctx context.Context, network, address string) (net.Conn, error)

// connected connects, and returns a dialer that hands out that connection first: a client
// that cannot connect logs each attempt. The connections end with ctx. Nothing else ends
// a read that waits for news.
func connected(ctx context.Context, dial dialer, address string) (dialer, error) {
	bound := func(dialing context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(dialing, network, address)
		if err == nil {
			context.AfterFunc(ctx, func() { _ = conn.Close() })
		}
		return conn, err
	}
	conn, err := bound(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to Redis: %w", advised(err))
	}
	first := make(chan net.Conn, 1)
	first <- conn
	return func(dialing context.Context, network, address string) (net.Conn, error) {
		select {
		case conn := <-first:
			return conn, nil
		default:
			return bound(dialing, network, address)
		}
	}, nil
}

// watchClient returns a client of the server that has the directory now. Its connections
// end with ctx.
func (k *RedisKeys) watchClient(ctx context.Context) (*redis.Client, error) {
	finding, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	address, err := k.redis.home(finding, k.records)
	if err != nil {
		return nil, advised(err)
	}
	options := k.redis.single(address, keysTimeout)
	options.PoolSize = 2
	if options.Dialer, err = connected(ctx, k.redis.dial, address); err != nil {
		return nil, err
	}
	return newClient(options), nil
}
