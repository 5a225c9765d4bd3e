package devstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A RedisServer is one redis-server, or Sentinel, at a free port of 127.0.0.1. It can be
// killed and started again at the same address.
type RedisServer struct {
	Address string   // host:port
	Dir     string   // of its own: what it keeps, and redis.log
	CLIArgs []string // what redis-cli needs besides to reach it, such as --tls
	Process *Process // that runs, or ran last

	words []string
	log   *os.File
}

// StartRedisServer starts a server in a new directory below dir. Further words are those of
// redis-server, such as "--maxmemory", "10mb", and take the place of what is said here:
// nothing is kept on disk.
func StartRedisServer(ctx context.Context, dir string, words ...string) (*RedisServer, error) {
	r, err := newRedisServer(dir)
	if err != nil {
		return nil, err
	}
	_, port, _ := strings.Cut(r.Address, ":")
	r.words = append([]string{
		"redis-server", "--bind", "127.0.0.1", "--port", port, "--dir", r.Dir, "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0",
	}, words...)
	return r, r.Start(ctx)
}

// StartTLSRedisServer starts a server that is reached by TLS alone. A key file and a
// certificate of its own and the roots of its clients are among the further words; see
// StartRedisServer.
func StartTLSRedisServer(ctx context.Context, dir string, words ...string) (*RedisServer, error) {
	r, err := newRedisServer(dir)
	if err != nil {
		return nil, err
	}
	_, port, _ := strings.Cut(r.Address, ":")
	r.words = append([]string{
		"redis-server", "--bind", "127.0.0.1", "--port", "0", "--tls-port", port, "--dir", r.Dir, "--save", "", "--appendonly", "no",
	}, words...)
	return r, r.Start(ctx)
}

func newRedisServer(dir string) (*RedisServer, error) {
	if _, err := exec.LookPath("redis-server"); err != nil {
		return nil, fmt.Errorf("find redis-server: %w: install it (Debian: apt-get install redis-server; macOS: brew install redis)", err)
	}
	address, err := FreeAddress()
	if err != nil {
		return nil, err
	}
	_, port, _ := strings.Cut(address, ":")
	r := &RedisServer{Address: address, Dir: filepath.Join(dir, "redis-"+port)}
	if err := os.MkdirAll(r.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of a Redis server: %w", err)
	}
	return r, nil
}

// Start starts the server, again where it has ended, and returns when it accepts
// connections. It may still be loading then.
func (r *RedisServer) Start(ctx context.Context) error {
	var err error
	if r.log == nil {
		if r.log, err = os.OpenFile(filepath.Join(r.Dir, "redis.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
			return fmt.Errorf("open the log of a Redis server: %w", err)
		}
	}
	if r.Process, err = Start("redis-server "+r.Address, r.words, nil, r.log); err != nil {
		return err
	}
	err = poll(ctx, func(ctx context.Context) error {
		select {
		case <-r.Process.Done():
			return fmt.Errorf("%w (%w): see %s", errEnded, r.Process.err, r.log.Name())
		default:
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", r.Address)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if err != nil {
		return errors.Join(fmt.Errorf("start the Redis server %s: %w", r.Address, err), r.Stop())
	}
	return nil
}

// Kill ends the server at once, as kill -9 does, and waits for its end.
func (r *RedisServer) Kill() error {
	if err := r.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-r.Process.Done()
	return nil
}

// Stop ends the server in order, be it stopped by a signal or not. One that has ended is no
// error.
func (r *RedisServer) Stop() error {
	if r.Process == nil {
		return nil
	}
	if err := r.Process.Signal(syscall.SIGCONT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	err := r.Process.Stop(stopGrace)
	if r.log != nil {
		err = errors.Join(err, r.log.Close())
		r.log = nil
	}
	return err
}

// Do sends a command by redis-cli, and returns the answer as text. An answer that is an
// error is one.
func (r *RedisServer) Do(ctx context.Context, words ...string) (string, error) {
	host, port, _ := strings.Cut(r.Address, ":")
	args := append([]string{"-e", "--no-auth-warning", "-h", host, "-p", port}, r.CLIArgs...)
	cmd := exec.CommandContext(ctx, "redis-cli", append(args, words...)...)
	cmd.Env = os.Environ()
	output, err := cmd.CombinedOutput()
	answer := strings.ReplaceAll(strings.TrimSpace(string(output)), "\r\n", "\n")
	if err != nil {
		return "", fmt.Errorf("send %s to %s: %w: %s", words[0], r.Address, err, answer)
	}
	return answer, nil
}

// stopServers ends servers, and returns what went wrong.
func stopServers(lists ...[]*RedisServer) error {
	var errs []error
	for _, list := range lists {
		for _, r := range list {
			errs = append(errs, r.Stop())
		}
	}
	return errors.Join(errs...)
}

// addresses returns those of servers.
func addresses(servers []*RedisServer) []string {
	list := make([]string, len(servers))
	for i, r := range servers {
		list[i] = r.Address
	}
	return list
}

// errEnded is an answer that further questions do not change.
var errEnded = errors.New("it ended")

// poll asks until the answer is nil, for startTimeout at the most.
func poll(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := ask(ctx)
		if err == nil || errors.Is(err, errEnded) {
			return err
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return last
		case <-tick.C:
		}
	}
}
