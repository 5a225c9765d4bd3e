package usage_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
	"github.com/tiergate/tiergate/internal/usage"
)

// A count is what was told of an account and resource in all.
type count map[[2]string]usage.Counts

func (c count) add(account, resource string, o usage.Counts) {
	sum := c[[2]string{account, resource}]
	sum.Add(o)
	c[[2]string{account, resource}] = sum
}

func (c count) addBatch(b usage.Batch) {
	for _, a := range b.Accounts {
		for _, cell := range a.Cells {
			c.add(a.ID, cell.Label, cell.Counts)
		}
	}
}

// ofRandomCalls makes so many calls, and counts them.
func ofRandomCalls(r *usage.Recorder, calls int, now time.Time) count {
	c := count{}
	for range calls {
		account, resource := "k"+strconv.Itoa(rand.IntN(50)), []string{"chat", "images"}[rand.IntN(2)]
		tier, priority := []string{"free", "pro"}[rand.IntN(2)], quota.Priorities()[rand.IntN(4)]
		at := now.Add(time.Duration(rand.IntN(300)) * time.Second)
		var o usage.Counts
		switch reason := []string{"", "", "requests_per_minute", usage.Failed}[rand.IntN(4)]; {
		case rand.IntN(4) == 0:
			o = usage.Counts{InputTokens: rand.Int64N(100), OutputTokens: rand.Int64N(100)}
			r.Settled(usage.Settled{Account: account, Tier: tier, Resource: resource, Priority: priority, At: at, Input: o.InputTokens, Output: o.OutputTokens})
		default:
			o.Admitted = 1
			if reason != "" {
				o = usage.Counts{Refused: map[string]int64{reason: 1}}
			}
			r.Decided(usage.Decided{Account: account, Tier: tier, Resource: resource, Priority: priority, Requests: 1, At: at, Reason: reason}, nil)
		}
		c.add(account, resource, o)
		c.add(usage.FleetByResource, resource, o)
		c.add(usage.FleetByTier, tier, o)
		c.add(usage.FleetByPriority, priority.Number(), o)
	}
	return c
}

// TestRecorderCounts: what many tell at once, while batches are taken, is what they
// told, each of it in its place.
func TestRecorderCounts(t *testing.T) {
	t.Parallel()
	r := usage.NewRecorder(usage.RecorderOptions{Now: time.Now})
	told, taken := count{}, count{}
	var mu sync.Mutex
	var tellers, taker sync.WaitGroup
	for range 32 {
		tellers.Go(func() {
			c := ofRandomCalls(r, 10_000, time.Now())
			mu.Lock()
			defer mu.Unlock()
			for k, o := range c {
				told.add(k[0], k[1], o)
			}
		})
	}
	done := make(chan struct{})
	taker.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				taken.addBatch(r.Flush())
			}
		}
	})
	tellers.Wait()
	close(done)
	taker.Wait()
	taken.addBatch(r.Flush())
	if !reflect.DeepEqual(taken, told) {
		t.Error("the batches are not what was told")
	}
	if b := r.Flush(); len(b.Accounts) != 0 || r.Overflowed() != 0 {
		t.Errorf("%d accounts are left, %d overflowed", len(b.Accounts), r.Overflowed())
	}
}

// find returns an account of a batch.
func find(t *testing.T, b usage.Batch, id string) *usage.Account {
	t.Helper()
	for i := range b.Accounts {
		if b.Accounts[i].ID == id {
			return &b.Accounts[i]
		}
	}
	t.Errorf("nothing is told of %s", id)
	return &usage.Account{}
}

// TestRecorderIsBounded: beyond the bound of cells, requests are those of Other, and
// the fleet's as ever; a batch makes room again. Reasons and refusals are bounded.
func TestRecorderIsBounded(t *testing.T) {
	t.Parallel()
	r := usage.NewRecorder(usage.RecorderOptions{Now: time.Now, MaxCells: 20})
	now := time.Now()
	for range 2 {
		for i := range 500 {
			r.Decided(usage.Decided{Account: "k" + strconv.Itoa(i%100), Tier: "pro", Resource: "chat", Priority: quota.Low, Requests: 1, At: now}, nil)
		}
		r.Settled(usage.Settled{Account: "k99", Tier: "pro", Resource: "chat", Priority: quota.Low, At: now, Input: 3})
		b := r.Flush()
		if len(b.Accounts) != 20+1+3 {
			t.Errorf("%d accounts, want 20, the rest, and three of the fleet", len(b.Accounts))
		}
		if rest := find(t, b, usage.Other); !rest.Last.IsZero() || rest.IsKey() {
			t.Errorf("the rest is a key, last used at %s", rest.Last)
		}
		other := find(t, b, usage.Other).Totals()
		if other.Admitted != 400 || other.InputTokens != 3 {
			t.Errorf("the rest: %+v, want 400 requests and 3 tokens", other)
		}
		if fleet := find(t, b, usage.FleetByTier); len(fleet.Cells) != 1 || fleet.Cells[0].Label != "pro" || fleet.Totals().Admitted != 500 {
			t.Errorf("the fleet: %+v, want 500", fleet)
		}
		if n := b.Requests(); n != 500 {
			t.Errorf("a batch of %d requests, want 500", n)
		}
	}
	if n := r.Overflowed(); n != 802 {
		t.Errorf("%d overflowed, want 802", n)
	}
	d := usage.Decided{Account: "k", Tier: "pro", Resource: "chat", Priority: quota.Low, Requests: 1}
	how := &quota.Decision{RefusedBy: quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: 5}, RefusedUsed: 5}
	for i := range 50 {
		how.Now, d.Reason = now.Add(time.Duration(i)*time.Millisecond), "limit"+strconv.Itoa(i)
		d.At = how.Now
		r.Decided(d, how)
	}
	k := find(t, r.Flush(), "k")
	if refused := k.Totals().Refused; len(refused) != 17 || refused["limit15"] != 1 || refused[usage.OtherReasons] != 34 {
		t.Errorf("reasons %v: want 16, and 34 others", refused)
	}
	if n := len(k.Refusals); n != 20 || !k.Refusals[0].At.Equal(now.Add(30*time.Millisecond)) || !k.Refusals[19].At.Equal(now.Add(49*time.Millisecond)) {
		t.Errorf("%d refusals %v: want the latest 20, the oldest first", n, k.Refusals)
	}
}

// TestRecorderReadsDecisions: an account's limits per minute, how near it is to the
// nearest, and what was refused come from its decisions; what the key's holder could
// not have used up does not.
func TestRecorderReadsDecisions(t *testing.T) {
	t.Parallel()
	r := usage.NewRecorder(usage.RecorderOptions{Now: time.Now})
	d := usage.Decided{Account: "k", Tier: "pro", Resource: "chat", Priority: quota.High, Requests: 1}
	how := decisionOf(t, // and by limits that are no answer to what the key has per minute
		quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: 900, Resource: quota.DefaultResource},
		quota.Limit{Metric: quota.Tokens, Window: quota.Minute, Max: 90_000, Priority: quota.High})
	d.At = how.Now.Add(3 * time.Second) // the clock that counts is another: when a request fits goes by it
	r.Decided(d, how)
	k := find(t, r.Flush(), "k")
	if len(k.Cells) != 1 || k.Cells[0].Minute != d.At.Truncate(time.Minute).Unix()/60 {
		t.Errorf("%+v: want one of the minute of %s", k.Cells, d.At)
	}
	if k.LimitRequests != 1000 || k.LimitTokens != 100_000 || k.Near.Limit != "" || !k.Last.Equal(d.At) {
		t.Errorf("%+v: want limits of 1,000 and 100,000, near none, last %s", k, d.At)
	}
	large := *how
	large.Admitted, large.TooLarge, large.Declared, large.Wait = false, true, 5000, time.Minute
	large.RefusedBy = quota.Limit{Metric: quota.Tokens, Window: quota.Minute, Max: 4000}
	d.Reason, how = usage.TooLarge, &large
	r.Decided(d, how)
	closed := *how
	closed.TooLarge, closed.Asked, closed.RefusedBy = false, 1, quota.Limit{Metric: quota.Requests, Window: quota.Day}
	d.Reason = "requests_per_day"
	r.Decided(d, &closed)
	shed := *how
	shed.TooLarge, shed.RefusedUsed, shed.Asked = false, 700, 500
	shed.RefusedBy = quota.Limit{Metric: quota.Tokens, Window: quota.Minute, Max: 500, Resource: "chat", Priority: quota.Low, Pooled: true}
	d.Reason = quota.CapacityName
	r.Decided(d, &shed)
	d.Reason = usage.Forbidden
	r.Decided(d, how)
	d.Reason, how = usage.Failed, nil
	r.Decided(d, how)
	k = find(t, r.Flush(), "k")
	want := []usage.Refusal{
		{At: large.Now, Resource: "chat", Limit: "tokens_per_minute", Max: 4000, Asked: 5000, TooLarge: true},
		{At: closed.Now, Resource: "chat", Limit: "requests_per_day", Asked: 1}, // never fits
		{At: shed.Now, Resource: "chat", Limit: "capacity", Wait: time.Minute},  // what it asked is cut to the share, and would tell of that
	}
	if !reflect.DeepEqual(k.Refusals, want) {
		t.Errorf("refusals %+v, want %+v", k.Refusals, want)
	}
	if refused := k.Totals().Refused; len(refused) != 5 || k.Totals().Admitted != 0 {
		t.Errorf("refused %v, want one of each", refused)
	}
	r.Settled(usage.Settled{Account: "k", At: d.At, Input: -1, Output: 5})
	b := r.Flush()
	if c := find(t, b, "k").Cells; len(c) != 1 || c[0].Label != quota.DefaultResource || c[0].InputTokens != 0 || c[0].OutputTokens != 5 {
		t.Errorf("tokens %+v: want 5 of the default resource", c)
	}
	if c := find(t, b, usage.FleetByTier).Cells; len(c) != 1 || c[0].Label != usage.Unknown {
		t.Errorf("of no tier: %+v", c)
	}
}

// A faultyStore is a real one on a line that fails: before the batch has arrived, or
// after.
type faultyStore struct {
	*store.FileUsage
	failing func() (before, after bool)
}

var errLine = errors.New("the line is down")

func (f *faultyStore) Add(ctx context.Context, b usage.Batch) error {
	before, after := f.failing()
	if before {
		return errLine
	}
	if err := f.FileUsage.Add(ctx, b); err != nil {
		return err
	}
	if after {
		return errLine
	}
	return ctx.Err()
}

func newFaultyStore(t *testing.T) *faultyStore {
	t.Helper()
	f, err := store.OpenFile("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &faultyStore{FileUsage: store.NewFileUsage(f, time.Now), failing: func() (bool, bool) { return false, false }}
}

// admitted is how many requests of an account the store knows.
func (f *faultyStore) admitted(t *testing.T, account string) int64 {
	t.Helper()
	points, err := f.Series(t.Context(), account, usage.Query{Step: usage.Day, To: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	var n int64
	for _, p := range points {
		if p.Resource == "" {
			n += p.Admitted
		}
	}
	return n
}

// running runs a recorder until the function that it returns is called, which returns
// what Run did.
func running(t *testing.T, r *usage.Recorder, s usage.Store) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx, s) }()
	return func() error {
		cancel()
		return <-ended
	}
}

// TestRecorderRetries: through failures before and after a batch arrived, nothing is
// lost and nothing counts twice, and each change is told once; at the end the rest is
// handed over.
func TestRecorderRetries(t *testing.T) {
	t.Parallel()
	s := newFaultyStore(t)
	synctest.Test(t, func(t *testing.T) {
		var told []error
		r := usage.NewRecorder(usage.RecorderOptions{
			Instance: "i", Now: time.Now, Interval: time.Second, OnError: func(err error) { told = append(told, err) },
		})
		n, began := 0, time.Now()
		s.failing = func() (bool, bool) {
			outage := time.Since(began)/(50*time.Second)%2 == 1
			return outage && rand.IntN(2) == 0, outage
		}
		stop := running(t, r, s)
		for i := range 3000 { // ten a second, for five minutes
			r.Decided(usage.Decided{Account: "k" + strconv.Itoa(i%7), Resource: "chat", Requests: 1, At: time.Now()}, nil)
			n++
			time.Sleep(100 * time.Millisecond)
		}
		r.Decided(usage.Decided{Account: "k0", Resource: "chat", Requests: 1, At: time.Now()}, nil)
		if err := stop(); err != nil {
			t.Error(err)
		}
		if got := s.admitted(t, usage.FleetByResource); got != int64(n+1) {
			t.Errorf("the store knows %d of %d", got, n+1)
		}
		if got, want := s.admitted(t, "k0"), int64((n+6)/7+1); got != want {
			t.Errorf("the store knows %d of %d of one account", got, want)
		}
		for i, err := range told {
			if want := []error{errLine, nil}[i%2]; !errors.Is(err, want) {
				t.Errorf("told %d: %v, want %v", i, err, want)
			}
		}
		if len(told) < 5 || len(told) > 6 {
			t.Errorf("told %d times of three outages", len(told))
		}
	})
}

// TestRecorderEnds: what a store does not take at the end, or for two hours, is lost,
// and how much that is, is said. The end has a deadline.
func TestRecorderEnds(t *testing.T) {
	t.Parallel()
	s := newFaultyStore(t)
	synctest.Test(t, func(t *testing.T) {
		r := usage.NewRecorder(usage.RecorderOptions{Instance: "i", Now: time.Now, LastWait: 3 * time.Second})
		s.failing = func() (bool, bool) { return true, false }
		stop := running(t, r, s)
		tell := func(n int) {
			for range n {
				r.Decided(usage.Decided{Account: "k", Resource: "chat", Requests: 1, At: time.Now()}, nil)
			}
		}
		tell(5)
		time.Sleep(time.Minute)
		tell(3)
		time.Sleep(usage.BatchKept - 2*time.Minute)
		if n := r.Dropped(); n != 0 {
			t.Errorf("%d dropped before two hours", n)
		}
		time.Sleep(3 * time.Minute)
		if n := r.Dropped(); n != 5 {
			t.Errorf("%d dropped after two hours, want 5", n)
		}
		tell(2)
		if err := stop(); err == nil || !strings.Contains(err.Error(), " 5 requests") || r.Dropped() != 10 {
			t.Errorf("the end: %v, dropped %d: want 5 requests and 10", err, r.Dropped())
		}
	})
	synctest.Test(t, func(t *testing.T) {
		r := usage.NewRecorder(usage.RecorderOptions{Instance: "j", Now: time.Now, LastWait: 3 * time.Second})
		stop := running(t, r, stuckStore{})
		r.Decided(usage.Decided{Account: "k", Resource: "chat", Requests: 1, At: time.Now()}, nil)
		began := time.Now()
		if err := stop(); err == nil || time.Since(began) != 3*time.Second {
			t.Errorf("the end took %s, %v: want 3 s and an error", time.Since(began), err)
		}
	})
}

// A stuckStore answers nobody.
type stuckStore struct{}

func (stuckStore) Add(ctx context.Context, _ usage.Batch) error {
	<-ctx.Done()
	return ctx.Err()
}
