package devstack

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"
)

// A told is cancelled by what is written to it.
type told struct {
	bytes.Buffer

	cancel context.CancelFunc
}

func (t *told) Write(b []byte) (int, error) {
	t.cancel()
	return t.Buffer.Write(b)
}

// TestWaitWithoutRedis: of a Redis that has ended in order, too, it says how, and what to type.
func TestWaitWithoutRedis(t *testing.T) {
	t.Parallel()
	run := func(words ...string) *Process {
		p, err := Start(words[0], words, nil, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Stop(time.Minute) })
		return p
	}
	s := &Stack{Server: run("sleep", "600"), Proxy: run("sleep", "600"), Redis: run("sh", "-c", "exit 0", "it's", "")}
	ctx, cancel := context.WithCancel(t.Context())
	out := &told{cancel: cancel}
	if err := s.Wait(ctx, out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Redis has ended (exit status 0; see redis.log)", "\n  sh -c 'exit 0' 'it'\\''s' ''\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("want %q in:\n%s", want, out)
		}
	}
}
