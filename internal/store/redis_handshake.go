package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/redis/go-redis/v9"
)

// handshake is a hook of every client of Redis: through it goes what Redis says to HELLO and
// AUTH, which have the password in them. Some servers, and proxies before them, repeat in an
// error what they were sent.
type handshake struct{}

// DialHook implements redis.Hook.
func (handshake) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessPipelineHook implements redis.Hook. A pipeline has no part of a handshake that has
// a secret.
func (handshake) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// ProcessHook implements redis.Hook.
func (handshake) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if err == nil {
			return nil
		}
		// HELLO by itself only asks for the version.
		if name := cmd.Name(); name == "auth" || name == "hello" && len(cmd.Args()) > 1 {
			err = withoutAnswer(strings.ToUpper(name), err)
			cmd.SetErr(err)
		}
		return err
	}
}

// A handshakeError is an error with which Redis has answered HELLO or AUTH, without its text.
type handshakeError string

// Error implements error.
func (e handshakeError) Error() string { return string(e) }

// RedisError implements redis.Error.
func (handshakeError) RedisError() {}

// withoutAnswer returns the error of a command of the handshake without what the server
// wrote: that may repeat the password, in whatever form. Of an error that advice knows its
// first words are left, as they stand in the table; what the network says is left as it is.
func withoutAnswer(command string, err error) error {
	var network net.Error
	if errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var answer redis.Error
	if !errors.As(err, &answer) {
		return fmt.Errorf("the answer to %s is none of Redis, and is not repeated, as it may hold the password: see whether the address and port are those of a Redis", command)
	}
	if known, ok := knownAnswer(answer); ok {
		return handshakeError(known[0] + " to " + command)
	}
	return handshakeError("an error to " + command + ", in words that are not repeated, as they may hold the password: try it by redis-cli")
}
