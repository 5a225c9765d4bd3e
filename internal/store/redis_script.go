package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// A script is one of Redis', which knows it by its hash once it has run it.
type script struct {
	*redis.Script

	text     string
	function *function // that does the same for less; nil: there is none
}

func newScript(text string) script { return script{Script: redis.NewScript(text), text: text} }

// A function is one of Redis 7's, in a library of its own. Between calls it keeps what it has
// worked out.
type function struct {
	name    string // of the library too
	library string
	without atomic.Int64 // how many calls are yet to be scripts; see refuse
}

// callsWithout is how many calls are scripts where Redis does not take the function. It is asked
// again then: it may be another one, or the user may have got the rights.
const callsWithout = 1000

// refuse notes that Redis does not take the function: it knows none, or the user lacks the rights.
func (f *function) refuse() { f.without.Store(callsWithout) }

// wanted reports whether the next call is one of the function.
func (f *function) wanted() bool { return f.without.Load() <= 0 || f.without.Add(-1) < 0 }

// newFunction returns the script of a source that defines run(keys, args), which is a function where
// Redis has such. Its name is that of its text, so that two versions of TierGate do not get
// in each other's way.
func newFunction(source string) script {
	hash := sha256.Sum256([]byte(source))
	name := "tiergate_" + hex.EncodeToString(hash[:8])
	s := newScript(source + "\nreturn run(KEYS, ARGV)\n")
	// While a library is loaded, redis.call is not there yet: the first call runs the source.
	s.function = &function{name: name, library: "#!lua name=" + name + "\nlocal function make()\n" + source + "\nreturn run\nend\n" +
		"local run\nredis.register_function('" + name + "', function(keys, args)\n  run = run or make()\n  return run(keys, args)\nend)\n"}
	return s
}

// command returns what calls the script: a function, or a script that Redis knows.
func (s script) command() (name, text string) {
	if s.function != nil && s.function.wanted() {
		return "fcall", s.function.name
	}
	return "evalsha", s.Hash()
}

const notFound = "Function not found"

// missing reports whether a server has answered that it does not have the function, and notes
// where it can have none. It has done nothing then.
func (f *function) missing(err error) bool {
	switch {
	case answeredWith(err, notFound):
		return true
	case answeredWith(err, "unknown command"), answeredWith(err, "to run the 'fcall' command"):
		f.refuse()
		return true
	default:
		return false
	}
}

func answeredWith(err error, text string) bool {
	var answer redis.Error
	return errors.As(err, &answer) && strings.Contains(answer.Error(), text)
}

// load gives the server of a key the function, which all instances of the same version share.
// It returns false where that fails.
func (r *Redis) load(ctx context.Context, f *function, key string) bool {
	server, err := r.server(ctx, key)
	if err != nil {
		return false
	}
	err = server.FunctionLoad(ctx, f.library).Err()
	if err == nil || answeredWith(err, "already exists") {
		return true
	}
	if errors.As(err, new(redis.Error)) {
		f.refuse()
	}
	return false
}

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

// newScriptCall returns the command EVAL, EVALSHA or FCALL.
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

// run runs a script once: FCALL, where Redis has no functions EVALSHA, and EVAL where it does not
// know the script. What it returns has no error then; see failed for the errors.
func (r *Redis) run(ctx context.Context, client redis.UniversalClient, s script, keys []string, args []any) (*redis.Cmd, error) {
	return r.runPatiently(ctx, client, s, keys, args, r.options.Timeout/2)
}

// runPatiently is run for a call that may wait so long while the slot of its keys moves.
func (r *Redis) runPatiently(ctx context.Context, client redis.UniversalClient, s script, keys []string, args []any, patience time.Duration) (*redis.Cmd, error) {
	command, text := s.command()
	for waited, loaded := time.Duration(0), false; ; {
		c := newScriptCall(ctx, command, text, keys, args)
		err := client.Process(ctx, c)
		switch {
		case err == nil:
			return c.Cmd, nil
		case command == "fcall" && s.function.missing(err):
			if loaded || !answeredWith(err, notFound) || !r.load(ctx, s.function, keys[0]) {
				command, text = "evalsha", s.Hash()
			}
			loaded = true
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
