package store

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
)

// serving listens as a Redis, and answers each command with what answer returns.
func serving(t *testing.T, answer func(words []string) string) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for reader := bufio.NewReader(conn); ; {
					words, err := readCommand(reader)
					if err != nil {
						return
					}
					if _, err := io.WriteString(conn, answer(words)); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// answering gives every command one answer.
func answering(t *testing.T, answer string) (address string) {
	t.Helper()
	return serving(t, func([]string) string { return answer })
}

// readCommand reads one command of a client: words, none with a line end in it.
func readCommand(r *bufio.Reader) (words []string, err error) {
	head, err := r.ReadString('\n') // *<words>
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(head, "*")))
	if err != nil {
		return nil, err
	}
	for range n {
		if _, err := r.ReadString('\n'); err != nil { // $<bytes>
			return nil, err
		}
		word, err := r.ReadString('\n')
		if err != nil {
			return nil, err
		}
		words = append(words, strings.TrimSpace(word))
	}
	return words, nil
}

// echoed begins what an echoing server repeats of a command with a password, each of which
// begins with passwords.
const (
	echoed    = "were-sent"
	passwords = "pass-"
)

// echoes are the ways in which a server repeats what it was sent.
func echoes() map[string]func(words []string) string {
	quoted := func(words []string) string {
		if !strings.HasPrefix(words[len(words)-1], passwords) {
			return fmt.Sprintf("%q", words)
		}
		return fmt.Sprintf("%s %q", echoed, words)
	}
	return map[string]func(words []string) string{
		"unknown command": func(w []string) string { return "-ERR unknown command, " + quoted(w) + "\r\n" },
		"wrong password":  func(w []string) string { return "-WRONGPASS " + quoted(w) + "\r\n" },
		"no password wanted": func(w []string) string {
			return "-ERR AUTH <password> called without any password configured for the default user. " + quoted(w) + "\r\n"
		},
		"capitals": func(w []string) string { return "-DENIED " + strings.ToUpper(quoted(w)) + "\r\n" },
		"encoded": func(w []string) string {
			return "-ERR " + strings.ReplaceAll(quoted(w), w[len(w)-1], base64.StdEncoding.EncodeToString([]byte(w[len(w)-1]))) + "\r\n"
		},
		"cut off":    func(w []string) string { return "-ERR " + quoted(w)[:len(quoted(w))-4] + "\r\n" },
		"script":     func(w []string) string { return "-ERR script -BUSY " + quoted(w) + "\r\n" },
		"bulk error": func(w []string) string { s := quoted(w); return fmt.Sprintf("!%d\r\n%s\r\n", len(s), s) },
		"no Redis":   func(w []string) string { return "500 " + quoted(w) + "\r\n" },
		"text":       func(w []string) string { return "+" + quoted(w) + "\r\n" },
		"no map":     func(w []string) string { return "%" + quoted(w) + "\r\n" },
		"number":     func(w []string) string { return ":" + quoted(w) + "\r\n" },
		"pushed": func(w []string) string {
			return ">2\r\n+" + quoted(w) + "\r\n+" + quoted(w) + "\r\n-ERR " + quoted(w) + "\r\n"
		},
		"odd map": func(w []string) string { return "%1\r\n+" + quoted(w) + "\r\n-ERR " + quoted(w) + "\r\n" },
	}
}

// A lockedText is what was written so far. It is safe for concurrent use.
type lockedText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestEchoedPassword: a server that repeats what it was sent brings the password into no
// error and into no log, neither the first one nor one that it was changed to.
func TestEchoedPassword(t *testing.T) {
	t.Parallel()
	const first, second = "pass-Opensesame", "pass-Swordfish"
	logged := &lockedText{} // clients of other tests may log to its end
	LogRedis(slog.New(slog.NewTextHandler(logged, &slog.HandlerOptions{Level: slog.LevelDebug})))
	t.Cleanup(func() { // when all parts have ended
		LogRedis(slog.New(slog.DiscardHandler))
		for line := range strings.Lines(logged.String()) {
			wantNotRepeated(t, line)
		}
	})
	unread := at(serving(t, func(words []string) string { return ">" + echoed + strings.Join(words, " ") + "\r\n" }))
	unread.Timeout, unread.Access.Password = 100*time.Millisecond, apikey.Redacting(first)
	wantNotRepeated(t, takeError(t, openRedis(t, unread)).Error())
	for name, echo := range echoes() {
		address := serving(t, echo)
		master := serving(t, func(words []string) string { // a Sentinel that is well
			host, port, _ := net.SplitHostPort(address)
			if words[0] == "sentinel" && words[1] == "get-master-addr-by-name" {
				return fmt.Sprintf("*2\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(host), host, len(port), port)
			}
			return "+OK\r\n"
		})
		for form, o := range map[string]RedisOptions{
			"single":   {Address: address},
			"user":     {Address: address, Username: "tiergate"},
			"cluster":  {Cluster: []string{address}},
			"primary":  {Sentinels: []string{master}, SentinelMaster: "m"},
			"sentinel": {Sentinels: []string{address}, SentinelMaster: "m", SentinelUsername: "tiergate"},
			"default":  {Sentinels: []string{address}, SentinelMaster: "m"},
		} {
			t.Run(name+"/"+form, func(t *testing.T) {
				t.Parallel()
				o.KeyPrefix, o.Timeout, o.PoolSize = "test", time.Second, 2
				o.Access = RedisAccess{Password: apikey.Redacting(first), SentinelPassword: apikey.Redacting(first)}
				r := NewRedis(o)
				t.Cleanup(func() { _ = r.Close() })
				shown := whatIsShown(t, r)
				r.UseAccess(RedisAccess{Password: apikey.Redacting(second), SentinelPassword: apikey.Redacting(second)})
				shown = append(shown, whatIsShown(t, r)...)
				for _, text := range shown {
					wantNotRepeated(t, text)
				}
			})
		}
	}
}

func wantNotRepeated(t *testing.T, text string) {
	t.Helper()
	if strings.Contains(strings.ToLower(text), echoed) {
		t.Errorf("the server's words are repeated: %s", text)
	}
}

// whatIsShown returns what is told of calls to a Redis that fail.
func whatIsShown(t *testing.T, r *Redis) []string {
	t.Helper()
	f := fallbackOn(r, nil)
	_, errTake := f.Take(t.Context(), one("a"))
	f.failed(f.part("a"), syscall.ECONNREFUSED)
	f.mend(t.Context(), f.part("a"))
	_, errSettle := r.Settle(t.Context(), settlement("r", 1))
	var errWatch error
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	keys := NewRedisKeys(r, KeyNotices{Outage: func(err error) { errWatch = err; cancel() }})
	_ = keys.Watch(ctx, func([]apikey.Record, bool) {})
	_, errKey := keys.Read(t.Context(), "k")
	var texts []string
	for what, err := range map[string]error{
		"take": errTake, "settle": errSettle, "ping": r.Ping(t.Context()), "state": f.State().Err, "watch": errWatch, "key": errKey,
	} {
		if err == nil && what != "take" {
			t.Errorf("%s: no error", what)
		}
		texts = append(texts, fmt.Sprintf("%s: %v", what, err))
	}
	return texts
}

// TestHandshakeAdvice: what is left out of an error is what the server wrote, and not what
// to do about it.
func TestHandshakeAdvice(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		"-WRONGPASS invalid\r\n": "WRONGPASS to AUTH: see to store.redis.username",
		"-ERR AUTH <password> called without any password configured for the default user.\r\n": "Redis wants no password",
		"-ERR something else\r\n":       "an error to AUTH, in words that are not repeated",
		"HTTP/1.1 400 Bad Request\r\n":  "the answer to HELLO is none of Redis",
		"-LOADING Redis is loading\r\n": "it answers when it has done so",
	} {
		o := at(answering(t, answer))
		o.Access.Password = apikey.Redacting("p")
		r := openRedis(t, o)
		wantKnown(t, takeError(t, r, want), notSent)
	}
}
