package store

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/devstack"
	"github.com/tiergate/tiergate/internal/quota"
)

// startRedis starts a redis-server that is stopped with the test.
func startRedis(t *testing.T, words ...string) *devstack.RedisServer {
	t.Helper()
	r, err := devstack.StartRedisServer(t.Context(), t.TempDir(), words...)
	if err != nil {
		t.Fatal(err)
	}
	stopLater(t, r.Stop)
	return r
}

func stopLater(t *testing.T, stop func() error) {
	t.Helper()
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// do sends a command to a server.
func do(t *testing.T, r *devstack.RedisServer, words ...string) string {
	t.Helper()
	answer, err := r.Do(t.Context(), words...)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// at returns options of a store at an address.
func at(address string) RedisOptions {
	return RedisOptions{Address: address, KeyPrefix: "test", Timeout: 2 * time.Second, PoolSize: 4}
}

// one is an order of one request of a month without a maximum.
func one(account string) quota.Order { return of(account, charge(quota.Month, 1_000_000, 1)) }

// takeError returns the error of a call that must fail, which must say all words.
func takeError(t *testing.T, r *Redis, words ...string) error {
	t.Helper()
	_, err := r.Take(t.Context(), one("a"))
	if err == nil {
		t.Fatalf("it was counted: want an error that says %q", words)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%v: want it to say %q", err, word)
		}
	}
	return err
}

// wantKnown checks what is known of a call that failed.
func wantKnown(t *testing.T, err error, want outcome) {
	t.Helper()
	var call *callError
	if !errors.As(err, &call) || call.outcome != want || outcomeUnknown(err) != (want == inDoubt) {
		t.Errorf("%v: outcome %+v: want %d", err, call, want)
	}
}

// soon makes attempts until one has no error.
func soon(t *testing.T, attempt func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := attempt()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		waits(t.Context(), 10*time.Millisecond)
	}
}

// TestRefusals: what Redis answers with an error has not been done, and the error says what
// to do.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		words   []string // of redis-server
		command []string // before the call
		want    []string
	}{
		{"replica", []string{"--replicaof", "127.0.0.1 1"}, nil, []string{"READONLY", "store.redis.sentinel"}},
		{"stale replica", []string{"--replicaof", "127.0.0.1 1", "--replica-serve-stale-data", "no"}, nil, []string{"MASTERDOWN", "name the primary"}},
		{"full", nil, []string{"CONFIG", "SET", "maxmemory", "1"}, []string{"OOM", "raise its maxmemory"}},
		{"no password", []string{"--requirepass", "x"}, nil, []string{"NOAUTH", "store.redis.password_file or password_env"}},
		{"no rights", nil, []string{"ACL", "SETUSER", "default", "-fcall", "-evalsha"}, []string{"NOPERM", "docs/configuration.md"}},
		{"no key", nil, []string{"ACL", "SETUSER", "default", "resetkeys", "~other:*"}, []string{"NOPERM", "store.redis.key_prefix"}},
		{"too few replicas", []string{"--min-replicas-to-write", "1"}, nil, []string{"NOREPLICAS", "min-replicas-to-write"}},
		{"one of a cluster", []string{"--cluster-enabled", "yes", "--cluster-port", freePort(t)}, nil, []string{"CLUSTERDOWN", "CLUSTER INFO"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			server := startRedis(t, c.words...)
			if c.command != nil {
				do(t, server, c.command...)
			}
			r := openRedis(t, at(server.Address))
			wantKnown(t, takeError(t, r, c.want...), answered)
			if err := r.Ping(t.Context()); err == nil {
				t.Error("ping finds nothing wrong")
			}
		})
	}
}

// TestBatchWithoutAPassword: a call of more than ten words is refused in words of its own.
func TestBatchWithoutAPassword(t *testing.T) {
	t.Parallel()
	r := openRedis(t, at(startRedis(t, "--requirepass", "x").Address))
	together := orders(10)
	send(t, r, together)
	for _, op := range together {
		wantKnown(t, op.err, answered)
		if text := op.err.Error(); !strings.Contains(text, "unauthenticated") || !strings.Contains(text, "store.redis.password_file or password_env") {
			t.Error(text)
		}
	}
}

// TestRightsMissingInsideAScript: the script had begun, so it may have done something.
func TestRightsMissingInsideAScript(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	do(t, server, "ACL", "SETUSER", "default", "-pexpire")
	r := openRedis(t, at(server.Address))
	wantKnown(t, takeError(t, r, "docs/configuration.md"), inDoubt)
	do(t, server, "ACL", "SETUSER", "default", "+pexpire")
	wantTaken(t, take(t, r, one("a")), true, 2) // it had
}

// TestNotSent: a call that reached nobody is known to have done nothing.
func TestNotSent(t *testing.T) {
	t.Parallel()
	address, err := devstack.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	err = takeError(t, openRedis(t, at(address)), "connection refused")
	wantKnown(t, err, notSent)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v does not wrap the cause", err)
	}

	closed := NewRedis(at(address))
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	wantKnown(t, takeError(t, closed, "closed"), notSent)

	server := startRedis(t)
	o := at(server.Address)
	o.PoolSize, o.Timeout = 1, 500*time.Millisecond
	small := openRedis(t, o)
	take(t, small, one("a"))
	if err := server.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	results := make(chan error, 2)
	for range 2 { // one has the only connection, the other waits for it
		go func() {
			_, err := small.Take(t.Context(), one("a"))
			results <- err
		}()
	}
	unknown := 0
	for range 2 {
		err := <-results
		if outcomeUnknown(err) {
			unknown++
		}
		if err == nil {
			t.Error("a stopped Redis answered")
		}
	}
	if unknown != 1 {
		t.Errorf("the outcome of %d is unknown: want that of the one which was sent", unknown)
	}
}

// TestLostAnswerIsInDoubt: see TestNoSecondCharge.
func TestLostAnswerIsInDoubt(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	proxy := newLossyProxy(t, server.Address)
	r := openRedis(t, at(proxy.address))
	take(t, r, one("a"))
	proxy.losing.Store(true)
	wantKnown(t, takeError(t, r), inDoubt)
	wantTaken(t, take(t, r, one("a")), true, 3)
}

// TestLoading: while Redis reads its data, nothing is counted, and it is by itself
// afterwards, from where it was.
func TestLoading(t *testing.T) {
	t.Parallel()
	server := startRedis(t, "--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024")
	r := openRedis(t, at(server.Address))
	take(t, r, one("a"))
	do(t, server, "EVAL", "for i = 1, 500 do redis.call('SET', 'x' .. i, string.rep('x', 100)) end", "0") // a second
	do(t, server, "SAVE")
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	loading := 0
	soon(t, func() error {
		_, err := r.Take(t.Context(), one("a"))
		if err != nil && strings.Contains(err.Error(), "LOADING") {
			loading++
			wantKnown(t, err, answered)
			if !strings.Contains(err.Error(), "reads its data from disk") {
				t.Error(err)
			}
		}
		return err
	})
	if loading == 0 {
		t.Error("Redis never said LOADING: the test proves nothing")
	}
	wantTaken(t, take(t, r, one("a")), true, 3)
}

// TestBusyRedis: a script or a function of somebody else that does not end.
func TestBusyRedis(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ kind, call, text string }{
		{"SCRIPT", "EVAL", "while true do end"},
		{"FUNCTION", "FCALL", "forever"},
	} {
		t.Run(c.kind, func(t *testing.T) {
			t.Parallel()
			server := startRedis(t, "--busy-reply-threshold", "50")
			r := openRedis(t, at(server.Address))
			take(t, r, one("a"))
			do(t, server, "FUNCTION", "LOAD", "#!lua name=others\nredis.register_function('forever', function() while true do end end)")
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_, _ = server.Do(t.Context(), c.call, c.text, "0") // killed below
			}()
			soon(t, func() error {
				_, err := server.Do(t.Context(), "PING")
				if err == nil {
					return errors.New("not busy yet")
				}
				return nil
			})
			wantKnown(t, takeError(t, r, "BUSY", "somebody else", "SCRIPT KILL or FUNCTION KILL ends it"), answered)
			do(t, server, c.kind, "KILL")
			<-ended // that it is to end is said before it has
			wantTaken(t, take(t, r, one("a")), true, 2)
		})
	}
}

// TestCallerGoesAway: it breaks no connection, and what it asked for is done.
func TestCallerGoesAway(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	r := openRedis(t, at(server.Address))
	take(t, r, one("a"))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	before := connectionsOf(t, server)
	for range 20 {
		if _, err := r.Take(gone, one("a")); err != nil {
			t.Fatal(err)
		}
	}
	if after := connectionsOf(t, server); after != before+1 { // that of the question itself
		t.Errorf("%d new connections", after-before-1)
	}
	wantTaken(t, take(t, r, one("a")), true, 22)
}

// connectionsOf returns how many connections a server has accepted.
func connectionsOf(t *testing.T, server *devstack.RedisServer) int {
	t.Helper()
	_, rest, _ := strings.Cut(do(t, server, "INFO", "stats"), "total_connections_received:")
	word, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.Atoi(word)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRestart: a server that was killed and started again is used again, by TLS too.
func TestRestart(t *testing.T) {
	t.Parallel()
	a, err := newAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	secure, err := devstack.StartTLSRedisServer(t.Context(), t.TempDir(), append(a.serverWords(), "--tls-auth-clients", "no")...)
	if err != nil {
		t.Fatal(err)
	}
	stopLater(t, secure.Stop)
	o := at(secure.Address)
	o.TLS, o.Access.Roots = true, a.pool
	plain := startRedis(t)
	for server, o := range map[*devstack.RedisServer]RedisOptions{plain: at(plain.Address), secure: o} {
		r := openRedis(t, o)
		take(t, r, one("a"))
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		for range 2 * o.PoolSize {
			takeError(t, r)
		}
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		soon(t, func() error { return r.Check(t.Context(), 0) })
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("used again after %s", took)
		}
		wantTaken(t, take(t, r, one("a")), true, 1)
	}
}

// closedDefaultUser returns the name of the documented user and words for redis-server by which that
// one is there and the default user is closed, with those of further documented blocks.
func closedDefaultUser(t *testing.T, more ...string) (string, []string) {
	t.Helper()
	words, err := documentedWords(append([]string{"acl default"}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	user, err := documentedUser("acl")
	if err != nil {
		t.Fatal(err)
	}
	return user[2], append(append(words, "--user"), user[2:]...)
}

// TestRestartWithoutTheDefaultUser: where that user is closed as documented, a Redis that persists
// has after a restart what it had. It replays what functions wrote with the rights of that user.
func TestRestartWithoutTheDefaultUser(t *testing.T) {
	t.Parallel()
	user, words := closedDefaultUser(t)
	words = append(words, "--appendonly", "yes", "--appendfsync", "always")
	server := startRedis(t, words...)
	o := at(server.Address)
	o.KeyPrefix, o.Username, o.Access.Password = "tiergate", user, apikey.Redacting(testPassword)
	r := openRedis(t, o)
	wantTaken(t, take(t, r, one("a")), true, 1)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	soon(t, func() error { return r.Check(t.Context(), 0) })
	wantTaken(t, take(t, r, one("a")), true, 2)
	if _, err := server.Do(t.Context(), "PING"); err == nil {
		t.Error("the default user is let in")
	}
}

// TestFailOverWithoutTheDefaultUser: where that user is closed, replicas and Sentinels get in by the
// documented users. What was counted is at the replica, and a primary that was lost follows the new one.
func TestFailOverWithoutTheDefaultUser(t *testing.T) {
	t.Parallel()
	user, words := closedDefaultUser(t, "conf replica", "conf watched")
	set, err := devstack.StartSentinels(t.Context(), devstack.SentinelOptions{
		Dir: t.TempDir(), Replicas: 1, Words: append(words, "--user", "test", "on", ">"+testPassword, "+wait", "+role", "+replicaof"),
		Lines: []string{"sentinel auth-user " + devstack.SentinelMaster + " sentinel", "sentinel auth-pass " + devstack.SentinelMaster + " " + testPassword},
	})
	if err != nil {
		t.Fatal(err)
	}
	stopLater(t, set.Stop)
	o := at("")
	o.Sentinels, o.SentinelMaster = set.Addresses(), devstack.SentinelMaster
	o.KeyPrefix, o.Username, o.Access.Password = "tiergate", user, apikey.Redacting(testPassword)
	r := openRedis(t, o)
	wantTaken(t, take(t, r, one("a")), true, 1)
	for _, server := range set.Servers {
		if _, err := server.Do(t.Context(), "PING"); err == nil {
			t.Errorf("%s lets the default user in", server.Address)
		}
		server.CLIArgs = []string{"--user", "test", "--pass", testPassword}
	}
	if replicas := do(t, set.Servers[0], "WAIT", "1", "5000"); replicas != "1" {
		t.Fatalf("%s replicas have what was counted: want 1", replicas)
	}
	if err := set.Servers[0].Kill(); err != nil {
		t.Fatal(err)
	}
	soon(t, func() error { return r.Check(t.Context(), 0) })
	wantTaken(t, take(t, r, one("a")), true, 2)
	if err := set.Servers[0].Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	host, port, _ := strings.Cut(set.Servers[1].Address, ":")
	do(t, set.Servers[0], "REPLICAOF", host, port) // as the Sentinels say after ten seconds
	soon(t, func() error {
		if role := do(t, set.Servers[0], "ROLE"); !strings.HasPrefix(role, "slave") || !strings.Contains(role, "\nconnected\n") {
			return errors.New("it does not follow: " + role)
		}
		return nil
	})
}

// TestCheck: it counts for nobody, for a short time, and finds its way in a Cluster.
func TestCheck(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	r := openRedis(t, at(server.Address))
	if n := r.parts(); n != 1 || r.part("anybody") != 0 {
		t.Errorf("%d parts", n)
	}
	if err := r.Check(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	ttl, err := strconv.Atoi(do(t, server, "TTL", "test:{~check0}:counts"))
	if err != nil || ttl < 0 || ttl > 60 {
		t.Errorf("TTL %d: %v", ttl, err)
	}
	do(t, server, "CONFIG", "SET", "maxmemory", "1")
	if err := r.Check(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "OOM") {
		t.Errorf("a full Redis: %v", err)
	}
	if err := r.Ping(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "ping Redis: count in Redis: OOM") {
		t.Errorf("ping of a full Redis: %v", err)
	}
	do(t, server, "CONFIG", "SET", "maxmemory", "0")
	if err := r.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestOldRedis: one that is too old is told apart from one that is away. The listener
// answers as Redis 5 does, and as Redis 6.0 does.
func TestOldRedis(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		"-ERR unknown command `HELLO`, with args beginning with: \r\n":           "it is older than 6.0: want 6.2 or newer",
		"*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n6.0.16\r\n": "it is version 6.0.16: want 6.2 or newer",
	} {
		r := openRedis(t, at(answering(t, answer)))
		for range 2 {
			if err := r.Check(t.Context(), 0); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v: want %q", err, want)
			}
		}
	}
	if err := newEnough("255.255.255"); err != nil {
		t.Error(err)
	}
	if err := newEnough("unstable"); err != nil {
		t.Error(err)
	}
}

// killClients ends all connections but the one that asks for it.
func killClients(t *testing.T, r *devstack.RedisServer) {
	t.Helper()
	do(t, r, "CLIENT", "KILL", "TYPE", "normal")
}

// TestPasswordIsRotated: connections there are go on, new ones use the new password, and no
// error has either.
func TestPasswordIsRotated(t *testing.T) {
	t.Parallel()
	server := startRedis(t, "--requirepass", "old-secret")
	server.CLIArgs = []string{"-a", "old-secret"}
	o := at(server.Address)
	o.Access.Password = apikey.Redacting("old-secret")
	r := openRedis(t, o)
	take(t, r, one("a"))
	do(t, server, "CONFIG", "SET", "requirepass", "new-secret")
	server.CLIArgs = []string{"-a", "new-secret"}
	wantTaken(t, take(t, r, one("a")), true, 2)
	killClients(t, server)
	err := takeError(t, r, "WRONGPASS", "store.redis.password_file or password_env")
	wantKnown(t, err, notSent)
	if strings.Contains(err.Error(), "-secret") {
		t.Errorf("the error has a secret: %v", err)
	}
	r.UseAccess(RedisAccess{Password: apikey.Redacting("new-secret")})
	wantTaken(t, take(t, r, one("a")), true, 3)
}

// TestSentinelPasswordIsRotated: so do connections to Sentinels.
func TestSentinelPasswordIsRotated(t *testing.T) {
	t.Parallel()
	set, err := devstack.StartSentinels(t.Context(), devstack.SentinelOptions{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	stopLater(t, set.Stop)
	o, err := sentinelUser(set)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range set.Sentinels { // nobody is let in without a password any more
		do(t, s, "ACL", "SETUSER", "default", "resetpass", ">other-secret")
		s.CLIArgs = []string{"-a", "other-secret"}
	}
	o.KeyPrefix, o.Timeout, o.PoolSize = "tiergate:1", 2*time.Second, 4
	r := openRedis(t, o)
	take(t, r, one("a"))
	for _, s := range set.Sentinels {
		do(t, s, "ACL", "SETUSER", "tiergate", "resetpass", ">new-secret")
		killClients(t, s)
	}
	killClients(t, set.Servers[0])
	if _, err := r.Take(t.Context(), one("a")); err == nil || !strings.Contains(err.Error(), "WRONGPASS") {
		t.Errorf("the old password: %v", err)
	}
	access := o.Access
	access.SentinelPassword = apikey.Redacting("new-secret")
	r.UseAccess(access)
	soon(t, func() error { return r.Check(t.Context(), 0) })
	wantTaken(t, take(t, r, one("a")), true, 2)
}

// TestCertificatesAreChanged: the server's and its roots, and the one to show.
func TestCertificatesAreChanged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, errFirst := newAuthority(dir)
	second, errSecond := newAuthority(dir)
	if err := errors.Join(errFirst, errSecond); err != nil {
		t.Fatal(err)
	}
	server, err := devstack.StartTLSRedisServer(t.Context(), dir, append(first.serverWords(), "--tls-auth-clients", "yes")...)
	if err != nil {
		t.Fatal(err)
	}
	stopLater(t, server.Stop)
	asClient := func(a *authority) {
		server.CLIArgs = append([]string{"--tls", "--cert", a.serverFile, "--key", a.keyFile}, "--cacert", a.caFile)
	}
	asClient(first)
	o := at(server.Address)
	o.TLS, o.Access = true, RedisAccess{Roots: first.pool}
	r := openRedis(t, o)
	wantKnown(t, takeError(t, r, "certificate required", "store.redis.tls.cert_file"), notSent)
	r.UseAccess(RedisAccess{Roots: first.pool, Certificate: &first.client, ServerName: "other.example.net"})
	wantKnown(t, takeError(t, r, "other.example.net", "store.redis.tls.server_name"), notSent)
	r.UseAccess(RedisAccess{Roots: first.pool, Certificate: &first.client, ServerName: "redis.example.net"})
	wantTaken(t, take(t, r, one("a")), true, 1)

	do(t, server, "CONFIG", "SET", "tls-cert-file", second.serverFile, "tls-key-file", second.keyFile, "tls-ca-cert-file", second.caFile)
	wantTaken(t, take(t, r, one("a")), true, 2) // by the connection there is
	asClient(second)
	killClients(t, server)
	soon(t, func() error {
		if _, err := r.Take(t.Context(), one("b")); err == nil || !strings.Contains(err.Error(), "store.redis.tls.ca_file") {
			return errors.Join(errors.New("want an unknown authority"), err)
		}
		return nil
	})
	r.UseAccess(RedisAccess{Roots: second.pool, Certificate: &second.client})
	wantTaken(t, take(t, r, one("a")), true, 3)

	do(t, server, "CONFIG", "SET", "tls-cert-file", second.expiredFile, "tls-key-file", second.expiredKeyFile)
	server.CLIArgs = append(server.CLIArgs, "--insecure")
	killClients(t, server)
	soon(t, func() error {
		if _, err := r.Take(t.Context(), one("b")); err == nil || !strings.Contains(err.Error(), "has expired") || !strings.Contains(err.Error(), "renew the server's certificate") {
			return errors.Join(errors.New("want an expired certificate"), err)
		}
		return nil
	})
}

// TestInClearToTLS: neither hangs.
func TestInClearToTLS(t *testing.T) {
	t.Parallel()
	o := at(startRedis(t).Address)
	o.TLS = true
	wantKnown(t, takeError(t, openRedis(t, o), "speaks TLS"), notSent)
	o = shared.options(t, "tls")
	o.TLS, o.Timeout = false, 2*time.Second
	wantKnown(t, takeError(t, openRedis(t, o)), notSent)
}
