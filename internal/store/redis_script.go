package store

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// A script is one of Redis', which knows it by its hash once it has run it.
type script struct {
	*redis.Script

	text string
}

func newScript(text string) script { return script{redis.NewScript(text), text} }

// A scriptCall is a command that runs a script, and is not sent again when its outcome is
// unknown: the client of a Cluster would, whatever it is told of retries. It is sent to
// the server that MOVED or ASK names.
type scriptCall struct {
	*redis.Cmd

	sent bool // whether some of it has been written
}

// NoRetry overrides that of commands.
func (*scriptCall) NoRetry() bool { return true }

// A sentMark is an argument that notes when its command is written to a connection.
type sentMark struct {
	sent *bool
	text string
}

// MarshalBinary implements encoding.BinaryMarshaler.
func (m sentMark) MarshalBinary() ([]byte, error) {
	*m.sent = true
	return []byte(m.text), nil
}

// newScriptCall returns the command EVAL or EVALSHA.
func newScriptCall(ctx context.Context, command, text string, keys []string, args []any) *scriptCall {
	c := &scriptCall{}
	words := make([]any, 0, 3+len(keys)+len(args))
	words = append(words, command, sentMark{&c.sent, text}, len(keys))
	for i := range keys {
		words = append(words, &keys[i]) // the text itself would be copied to the heap
	}
	c.Cmd = redis.NewCmd(ctx, append(words, args...)...)
	return c
}

// tryAgain is how long a call waits while the slot of its keys moves between two servers. It
// does so for half its time: what is sent last is to be answered within the other half, or
// it would be in doubt.
const tryAgain = 5 * time.Millisecond

// run runs a script once: EVALSHA, and EVAL where Redis does not know it. What it returns
// has no error then; see failed for the errors.
func (r *Redis) run(ctx context.Context, client redis.UniversalClient, s script, keys []string, args []any) (*redis.Cmd, error) {
	return r.runPatiently(ctx, client, s, keys, args, r.options.Timeout/2)
}

// runPatiently is run for a call that may wait so long while the slot of its keys moves.
func (r *Redis) runPatiently(ctx context.Context, client redis.UniversalClient, s script, keys []string, args []any, patience time.Duration) (*redis.Cmd, error) {
	command, text := "evalsha", s.Hash()
	for waited := time.Duration(0); ; {
		c := newScriptCall(ctx, command, text, keys, args)
		err := client.Process(ctx, c)
		switch {
		case err == nil:
			return c.Cmd, nil
		case redis.HasErrorPrefix(err, "NOSCRIPT") && command == "evalsha":
			command, text = "eval", s.text
		case redis.IsTryAgainError(err) && waited < patience && r.waitsToTryAgain(ctx):
			waited += tryAgain
		default:
			r.lookAgain(ctx)
			return nil, failed(err, c.sent)
		}
	}
}

// waitsToTryAgain returns false when half of the time of a count is left, or ctx ends before.
func (r *Redis) waitsToTryAgain(ctx context.Context) bool {
	if end, ends := ctx.Deadline(); ends {
		half, cancel := context.WithDeadline(ctx, end.Add(-r.options.Timeout/2))
		defer cancel()
		ctx = half
	}
	return waits(ctx, tryAgain)
}

// runSoon runs a script within the time of a count. A caller who goes away does not end it.
func (r *Redis) runSoon(ctx context.Context, s script, keys []string, args []any) (*redis.Cmd, error) {
	ctx, cancel := r.soon(ctx)
	defer cancel()
	return r.run(ctx, r.client, s, keys, args)
}

// soon returns a context of the time of a count, which a caller who goes away does not end.
func (r *Redis) soon(ctx context.Context) (context.Context, context.CancelFunc) {
	return within(ctx, r.options.Timeout)
}

// within returns a context of so much time, which a caller who goes away does not end.
func within(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), timeout)
}

// runForNumbers runs a script, as runSoon does, whose answer is so many numbers.
func (r *Redis) runForNumbers(ctx context.Context, s script, want int, keys []string, args ...any) ([]int64, error) {
	reply, err := r.runSoon(ctx, s, keys, args)
	if err != nil {
		return nil, err
	}
	numbers, err := reply.Int64Slice()
	if err != nil {
		return nil, err
	}
	if len(numbers) != want {
		return nil, fmt.Errorf("%d numbers in the answer, want %d", len(numbers), want)
	}
	return numbers, nil
}

// waits returns false when ctx ends before the time is over.
func waits(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
