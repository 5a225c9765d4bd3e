package store

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/devstack"
	"github.com/tiergate/tiergate/internal/quota"
)

// TestGivenBackToEveryForm of Redis, as the documented user.
func TestGivenBackToEveryForm(t *testing.T) {
	t.Parallel()
	for _, form := range forms() {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			f := fallbackOn(formStore(t, form), nil)
			local := manner{quota.Local, 1, false, nil}
			accounts := make([]string, 200)
			for i := range accounts {
				accounts[i] = "given" + strconv.Itoa(i)
				o := daily("r")
				o.Account = accounts[i]
				if _, err := f.part(o.Account).ledger.take(o, local, f.now()); err != nil {
					t.Fatal(err)
				}
			}
			for _, p := range f.parts {
				f.mend(t.Context(), p)
			}
			f.beat(t.Context(), false)
			if n := f.Totals(); !allShared(f) || n.Accounts != 200 || n.Counts != 200 || f.fleet.live.Load() != 1 {
				t.Errorf("%+v, %d instances", n, f.fleet.live.Load())
			}
			for _, account := range accounts {
				s := settlement("r", 10)
				s.Account = account
				wantOutcome(t, settle(t, f, s), quota.Settled)
				wantTaken(t, take(t, f, of(account, tokens(quota.Tokens, quota.Day, 10_000, 0))), true, 10)
			}
			f.beat(t.Context(), true)
		})
	}
}

// TestLostServerOfACluster: the keys of the others go on as usual; those of the lost one
// are counted without it, and given back when it is there again.
func TestLostServerOfACluster(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 0)
	o := inCluster(c.Addresses())
	o.Timeout = 500 * time.Millisecond
	f := fallbackOn(openRedis(t, o), nil)
	runs(t, f)
	lost := c.Servers[0]
	var there, elsewhere string
	for i := 0; there == "" || elsewhere == ""; i++ {
		account := "a" + strconv.Itoa(i)
		if ownerOf(t, c, countsKey("test", account)) == lost {
			there = account
		} else if p := f.redis.part(account); p != 5 && p != 10 { // which two servers have
			elsewhere = account
		}
	}
	month := func(account string, cost int64) quota.Order { return of(account, charge(quota.Month, 100, cost)) }
	wantTaken(t, take(t, f, month(there, 1)), true, 1)
	wantTaken(t, take(t, f, month(elsewhere, 1)), true, 1)
	if err := lost.Kill(); err != nil {
		t.Fatal(err)
	}
	for i := range int64(20) {
		if taken := take(t, f, month(there, 1)); !taken.Degraded || taken.Used[0] != 2+i {
			t.Errorf("there: %+v", taken)
		}
		if taken := take(t, f, month(elsewhere, 1)); taken.Degraded || taken.Used[0] != 2+i {
			t.Errorf("elsewhere: %+v", taken)
		}
	}
	if err := lost.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	becomes(t, "counts are shared again", func() bool { return allShared(f) })
	wantTaken(t, take(t, f, month(there, 0)), true, 20) // the first died with the server
	wantTaken(t, take(t, f, month(elsewhere, 0)), true, 21)
}

// TestMovingSlotKeepsTheRest: while a slot moves, its keys that are reserved for are counted
// by this instance, and given back; the other slots of the server are counted there all the time.
func TestMovingSlotKeepsTheRest(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 0)
	o := memberOf(t, c)
	o.Timeout = 250 * time.Millisecond
	f := fallbackOn(openRedis(t, o), nil)
	runs(t, f)
	becomes(t, "the instance is counted", func() bool { return f.fleet.live.Load() == 1 })
	other := ""
	for i := range 100_000 { // of the same part
		if other = fmt.Sprintf("b%d", i); f.part(other) == f.part("a") {
			break
		}
	}
	admitted := int64(0)
	reserve := func() quota.Taken {
		o := of("a", charge(quota.Month, 1_000_000, 1))
		o.Request, o.Secret, o.Keep = fmt.Sprintf("r%d", admitted), "s", time.Minute
		admitted++
		return take(t, f, o)
	}
	reserve()
	moveSlot(t, c, countsKey(o.KeyPrefix, "a"), sync.OnceFunc(func() {
		for range mostFailures + 1 {
			if !reserve().Degraded {
				t.Error("it is counted by half of its keys")
			}
		}
		for range 2 {
			if taken := take(t, f, of(other, charge(quota.Month, 1_000_000, 1))); taken.Degraded {
				t.Error("another slot is taken for one that is away")
			}
		}
	}))
	becomes(t, "counts are shared", func() bool { return allShared(f) })
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 1_000_000, 0))), true, admitted)
}

// TestSettledElsewhereWhileASlotMoves: what one instance has reserved by itself, since the slot was
// moving, another can settle before Redis has been given it.
func TestSettledElsewhereWhileASlotMoves(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 0)
	o := memberOf(t, c)
	o.Timeout = 250 * time.Millisecond
	r := openRedis(t, o)
	first, second := fallbackOn(r, nil), fallbackOn(r, func(o *FallbackOptions) { o.Instance = "two" })
	take(t, first, daily("before"))
	moveSlot(t, c, countsKey(o.KeyPrefix, "a"), sync.OnceFunc(func() {
		if taken := take(t, first, daily("r")); !taken.Degraded {
			t.Error("it is counted by half of its keys")
		}
		take(t, second, daily("other"))
	}))
	wantOutcome(t, settle(t, second, settlement("r", 10)), quota.Queued)
	for _, f := range []*Fallback{first, second} {
		f.mend(t.Context(), f.part("a"))
	}
	if n := second.Totals(); n.Settled != 1 {
		t.Errorf("%+v: want it to be settled", n)
	}
	if used := tokensUsed(t, first); used != 210 {
		t.Errorf("%d used: want 210", used)
	}
}

// TestInstancesGoBackTogether: one that finds Redis back keeps to its share until the others
// have found it too, and none waits for longer.
func TestInstancesGoBackTogether(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	first, second := fallbackOn(r, nil), fallbackOn(r, func(o *FallbackOptions) { o.Instance = "two" })
	for range 2 {
		for _, f := range []*Fallback{first, second} {
			f.beat(t.Context(), false)
		}
	}
	for _, f := range []*Fallback{first, second} {
		f.failed(f.parts[0], syscall.ECONNREFUSED)
		take(t, f, of("a", charge(quota.Month, 100, 10)))
	}
	ended := make(chan time.Time, 2)
	back := func(f *Fallback) {
		f.mend(t.Context(), f.parts[0])
		ended <- time.Now()
	}
	began := time.Now()
	go back(first)
	becomes(t, "the first has found Redis back", func() bool {
		return r.patient.Exists(t.Context(), r.prefix+":{"+r.checked[0].account+"}:back").Val() == 1
	})
	if !first.State().Degraded {
		t.Error("it goes back alone")
	}
	go back(second)
	one, other := <-ended, <-ended
	if one.Sub(began) < gathering*9/10 || other.Sub(one) > gathering/2 {
		t.Errorf("back after %s and %s", one.Sub(began), other.Sub(began))
	}
	wantTaken(t, take(t, first, of("a", charge(quota.Month, 100, 0))), true, 20)
}

// TestWhyAnOutageLasts: what is told of it is why Redis cannot be reached now, and once that
// there is something to do about it, if it did not begin so.
func TestWhyAnOutageLasts(t *testing.T) {
	t.Parallel()
	server, err := devstack.StartRedisServer(t.Context(), t.TempDir(), "--requirepass", testPassword)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	var explained []error
	f := fallbackOn(openRedis(t, RedisOptions{Address: server.Address, KeyPrefix: "test", Timeout: 5 * time.Second, PoolSize: 2, Access: RedisAccess{Password: apikey.Redacting("another")}}), func(o *FallbackOptions) {
		o.Notices.Explained = func(o Outage) { explained = append(explained, o.Err) }
	})
	f.failed(f.parts[0], syscall.ECONNREFUSED)
	if err := f.State().Err; !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("at first: %v", err)
	}
	for range 2 {
		f.mend(t.Context(), f.parts[0])
		if err := f.State().Err; err == nil || !strings.Contains(err.Error(), "WRONGPASS") {
			t.Errorf("then: %v", err)
		}
	}
	if len(explained) != 1 || !strings.Contains(explained[0].Error(), "WRONGPASS") {
		t.Errorf("explained: %q", explained)
	}
	take(t, f, of("a", charge(quota.Month, 10, 1)))
	for range mostFailures {
		if f.giveBack(t.Context(), f.parts[0]) {
			t.Error("given back")
		}
	}
	if err := f.parts[0].err; !strings.Contains(err.Error(), "WRONGPASS") {
		t.Errorf("giving back: %v", err)
	}
}
