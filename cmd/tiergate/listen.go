package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/tiergate/tiergate/internal/config"
)

// listeners are where the program is reached.
type listeners struct{ grpc, operator, customer net.Listener }

// listenAll opens every listener, or none.
func listenAll(ctx context.Context, c config.Start) (l listeners, err error) {
	for _, one := range []struct {
		into    *net.Listener
		address config.Address
		who     string
	}{
		{&l.grpc, c.GRPC, "Envoy at grpc.address"},
		{&l.operator, c.Operator, "operators at operator.address"},
		{&l.customer, c.Customer, "customers at customer.address"},
	} {
		if *one.into, err = listen(ctx, one.address, c.Listener.SocketMode); err != nil {
			err = fmt.Errorf("listen for %s: %w", one.who, err)
			for _, open := range []net.Listener{l.grpc, l.operator, l.customer} {
				if open != nil {
					err = errors.Join(err, open.Close())
				}
			}
			return listeners{}, err
		}
	}
	return l, nil
}

// listen opens a listener. A socket file that nobody serves any more is replaced. A
// socket has its mode before anybody but its owner can connect.
func listen(ctx context.Context, a config.Address, mode os.FileMode) (net.Listener, error) {
	if a.Network == "unix" {
		// Closed to others from its first moment. The mask is the whole process's, but at
		// this time it makes no other files, and at worst those would be closed to others.
		former := syscall.Umask(0o177)
		defer syscall.Umask(former)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, a.Network, a.Address)
	if a.Network == "unix" && errors.Is(err, syscall.EADDRINUSE) && !served(ctx, a) {
		if err := os.Remove(a.Address); err != nil {
			return nil, fmt.Errorf("remove the socket that a former server left: %w", err)
		}
		l, err = lc.Listen(ctx, a.Network, a.Address)
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%w: stop what serves there, or name another address", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: name another address", err)
	}
	if a.Network == "unix" {
		if err := os.Chmod(a.Address, mode); err != nil {
			return nil, errors.Join(fmt.Errorf("set grpc.socket_mode: %w", err), l.Close())
		}
	}
	return l, nil
}

// served reports whether somebody answers at a socket. What is no socket counts
// as served, so that no file of another kind is removed.
func served(ctx context.Context, a config.Address) bool {
	info, err := os.Stat(a.Address)
	if err != nil || info.Mode()&os.ModeSocket == 0 {
		return true
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, a.Network, a.Address)
	if err != nil {
		return !errors.Is(err, syscall.ECONNREFUSED)
	}
	_ = conn.Close() // it answered, that is all
	return true
}
