package store

import (
	"errors"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/devstack"
	"github.com/tiergate/tiergate/internal/quota"
)

// orders returns operations, each of an account of its own.
func orders(n int) []*operation {
	together := make([]*operation, n)
	for i := range together {
		o := one("a" + strconv.Itoa(i))
		o.Request, o.Secret = "r", "s"
		together[i] = &operation{order: &o}
	}
	return together
}

// send sends operations in one batch.
func send(t *testing.T, r *Redis, together []*operation) {
	t.Helper()
	ctx, cancel := r.soon(t.Context())
	defer cancel()
	r.sendTogether(ctx, together)
}

// TestOneBadAmongMany: what stands in the keys of one account is the fault of that account's
// requests alone.
func TestOneBadAmongMany(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	r := openRedis(t, at(server.Address))
	do(t, server, "SET", countsKey("test", "a7"), "text")
	do(t, server, "HSET", reservationKey("test", "a23", "r"), "no", "text")
	do(t, server, "SET", reservationKey("test", "a51", "r"), "1 s 0 tokens/minute,60000,10,x,y,z;")
	do(t, server, "SET", reservationKey("test", "a33", "r"), "9000000000000 s 0 requests/month,-1,1000000,1;|") // says not what was used
	bad := []int{7, 23, 33, 51}
	together := orders(51)
	together = append(together, &operation{settlement: &quota.Settlement{Account: "a51", Request: "r", Secret: "s", Used: quota.Cost{Tokens: 1}}})
	for round := range int64(2) {
		send(t, r, together)
		for i, op := range together {
			if !slices.Contains(bad, i) {
				if op.err != nil {
					t.Fatal(op.err)
				}
				wantTaken(t, op.taken, true, 1) // the second is a repeat
				continue
			}
			if op.err == nil || !keyAtFault(op.err) || op.taken.Admitted {
				t.Errorf("%d, round %d: %v, %+v: want an error that says what is in the keys", i, round, op.err, op.taken)
			}
			wantKnown(t, op.err, inDoubt) // as of any script that fails
		}
	}
}

// TestReservationMadeElsewhere: what an instance made while it could not reach Redis is
// settled once, and its repeat is charged no second time and told what was used then.
func TestReservationMadeElsewhere(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 3, 1, 12, 0, 50, 0, time.UTC)
	first := reservation{}
	first.fill(perMinuteAndDay("r"), quota.Taken{Now: begin, Used: []int64{1, 100, 100}})
	r := newScriptedRedis(t, redisServer(t))
	r.now = begin
	take(t, r, perMinuteAndDay("r"))
	take(t, r, perMinuteAndDay("another"))
	if err := r.client.Set(t.Context(), reservationKey("scripted", "a", "r"), first.record(), time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	again := perMinuteAndDay("r")
	again.Secret = "of the repeat"
	taken := take(t, r, again)
	wantTaken(t, taken, true, 1, 100, 100)
	if taken.Secret != "secret-r" {
		t.Errorf("the secret %q: want that of the first", taken.Secret)
	}
	r.now = begin.Add(15 * time.Second) // the next minute
	for _, want := range []quota.Outcome{quota.Settled, quota.Duplicate} {
		wantOutcome(t, settle(t, r, settlement("r", 70)), want)
		look := perMinuteAndDay("")
		for i := range look.Charges {
			look.Charges[i].Cost = 0
		}
		wantTaken(t, take(t, r, look), true, 0, 0, 170)
	}
}

// TestKeptInABatch: each order of a call has its reservation kept as long as it says.
func TestKeptInABatch(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	r := openRedis(t, at(server.Address))
	together := orders(4)
	together[1].order.Keep, together[2].order.Keep = time.Hour, time.Hour
	together[2].order.Undoable, together[3].order.Undoable = true, true
	send(t, r, together)
	for i, want := range []time.Duration{quota.RepeatWindow, time.Hour, time.Hour, quota.RepeatWindow} {
		ttl := r.client.PTTL(t.Context(), reservationKey("test", "a"+strconv.Itoa(i), "r")).Val()
		if ttl > want || ttl < want-5*time.Second {
			t.Errorf("TTL %s: want %s", ttl, want)
		}
	}
}

// TestKeptForRepeats: of an order that nothing settles is kept what its repeats need, and little
// more. They are answered as the first was, with other maxima and costs too, and where they count
// otherwise, by what is used now.
func TestKeptForRepeats(t *testing.T) {
	t.Parallel()
	r := newScriptedRedis(t, redisServer(t))
	r.now = time.Date(2026, 3, 1, 12, 0, 55, 0, time.UTC)
	order := func(request string, charges ...quota.Charge) quota.Order {
		return quota.Order{Account: "a", Request: request, Charges: charges}
	}
	first := order("r", charge(quota.Minute, 10, 1), sliding(quota.Hour, 1000, 1), tokens(quota.Tokens, quota.Day, 1_000_000, 500))
	take(t, r, order("another", first.Charges...))
	wantTaken(t, take(t, r, first), true, 2, 2, 1000)
	key := reservationKey("scripted", "a", "r")
	if kept := r.client.Get(t.Context(), key).Val(); len(kept) > 50 {
		t.Errorf("%d bytes are kept: %s", len(kept), kept)
	}
	if ttl := r.client.PTTL(t.Context(), key).Val(); ttl > quota.RepeatWindow || ttl < quota.RepeatWindow/2 {
		t.Errorf("TTL %s: want %s", ttl, quota.RepeatWindow)
	}

	r.now = r.now.Add(8 * time.Second) // the next minute
	take(t, r, order("more", first.Charges...))
	repeat := order("r", charge(quota.Minute, 20, 2), sliding(quota.Hour, 2000, 2), tokens(quota.Tokens, quota.Day, 2_000_000, 600))
	other := order("r", charge(quota.Minute, 20, 1), charge(quota.Day, 2000, 1))
	for _, test := range []struct {
		order quota.Order
		used  []int64
	}{{repeat, []int64{2, 2, 1000}}, {other, []int64{1, 0}}} {
		taken := take(t, r, test.order)
		wantTaken(t, taken, true, test.used...)
		if !taken.Repeated {
			t.Errorf("%+v repeats none", taken)
		}
	}
	wantTaken(t, take(t, r, order("", first.Charges...)), true, 2, 4, 2000)
}

// TestUndone: an order that may be undone is, once, and with the rights that Redis' user is
// documented to need.
func TestUndone(t *testing.T) {
	eachStore(t, func(t *testing.T, counts quota.Counts) {
		o := of("a", charge(quota.Month, 10, 4))
		o.Request, o.Secret, o.Undoable = "r", "s", true
		wantTaken(t, take(t, counts, o), true, 4)
		undo := quota.Settlement{Account: "a", Request: "r", Secret: "s", Void: true}
		wantOutcome(t, settle(t, counts, undo), quota.Settled)
		wantTaken(t, take(t, counts, of("a", charge(quota.Month, 10, 0))), true, 0)
		if outcome := settle(t, counts, undo); outcome == quota.Settled {
			t.Error("it is undone twice")
		}
		wantTaken(t, take(t, counts, of("a", charge(quota.Month, 10, 0))), true, 0)
	})
}

// TestCallCountsOnce: however many went in a call that failed, Redis has failed once; once
// for each part of a Cluster that has some of them.
func TestCallCountsOnce(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	o := at(server.Address)
	o.Timeout, o.PoolSize = 100*time.Millisecond, 32
	r := openRedis(t, o)
	f := fallbackOn(r, nil)
	warm(t, r)
	if err := server.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for calls := range int32(mostFailures - 1) {
		together := orders(50)
		send(t, r, together)
		for _, op := range together {
			wantKnown(t, op.err, inDoubt)
			f.failed(f.parts[0], op.err)
		}
		if n := f.parts[0].failures.Load(); n != calls+1 {
			t.Fatalf("%d failures after %d calls", n, calls+1)
		}
	}
	if err := server.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	soon(t, func() error { return r.Check(t.Context(), 0) })
	do(t, server, "CONFIG", "SET", "maxmemory", "1")
	together := orders(50)
	send(t, r, together)
	first := 0
	for _, op := range together {
		wantKnown(t, op.err, answered)
		for _, part := range []int{0, 15} {
			if firstOf(op.err, part) {
				first++
			}
		}
	}
	if first != 2 {
		t.Errorf("first of their call in two parts: %d, want 2", first)
	}
}

// TestSlotMovesWithinABatch: the accounts of one server are sent to it together. Those that
// have gone to another meanwhile, or are about to, are counted there, and no other twice.
func TestSlotMovesWithinABatch(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 0)
	r := openRedis(t, memberOf(t, c))
	home := ownerOf(t, c, countsKey(r.prefix, "a0"))
	var together []*operation
	for i := 0; len(together) < 20; i++ {
		o := one("a" + strconv.Itoa(i))
		if ownerOf(t, c, countsKey(r.prefix, o.Account)) == home {
			together = append(together, &operation{order: &o})
		}
	}
	take(t, r, *together[0].order)
	cluster, ok := r.client.(*redis.ClusterClient)
	if !ok {
		t.Fatal("no client of a Cluster")
	}
	node, err := cluster.MasterForKey(t.Context(), countsKey(r.prefix, "a0"))
	if err != nil {
		t.Fatal(err)
	}
	counted := int64(1) // of the first
	alone := 0
	count := func() {
		t.Helper()
		ctx, cancel := r.soon(t.Context())
		defer cancel()
		r.sendByAccount(ctx, node, together)
		counted++
		for i, op := range together {
			want := counted
			if i > 0 {
				want--
			}
			if op.alone {
				alone++
				op.alone = false
				r.sendTogether(ctx, []*operation{op})
			}
			if op.err != nil {
				t.Error(op.err)
			}
			wantTaken(t, op.taken, true, want)
		}
	}
	wantAlone := func(what string, want int) {
		t.Helper()
		if alone != want {
			t.Errorf("%s: %d are sent alone: want %d", what, alone, want)
		}
		alone = 0
	}
	count()
	wantAlone("where they are", 0)
	do(t, home, "FUNCTION", "FLUSH")
	count()
	wantAlone("without the function", len(together))
	moveSlot(t, c, countsKey(r.prefix, "a0"), count)
	alone = 0
	count()
	wantAlone("after the move", 1)
	if counted < 5 {
		t.Errorf("counted %d times: want some while the slot moved", counted)
	}
}

// oneSlotRedis returns a store on a server that wants each call to keep to one slot.
func oneSlotRedis(t *testing.T) *Redis {
	t.Helper()
	server := startRedis(t, "--cluster-enabled", "yes", "--cluster-port", freePort(t))
	words := []string{"CLUSTER", "ADDSLOTS"}
	for slot := range clusterSlots {
		words = append(words, strconv.Itoa(slot))
	}
	do(t, server, words...)
	r := openRedis(t, at(server.Address))
	soon(t, func() error { return r.Check(t.Context(), 0) })
	return r
}

// TestOneSlotForACall: a server, or what stands before many, may want each call to keep to
// one slot.
func TestOneSlotForACall(t *testing.T) {
	t.Parallel()
	r := oneSlotRedis(t)
	for _, n := range []int{50, 50, 1} { // it finds out, and knows
		together := orders(n)
		send(t, r, together)
		for _, op := range together {
			if op.err != nil {
				t.Fatal(op.err)
			}
			wantTaken(t, op.taken, true, 1)
		}
	}
	if !r.keepApart.Load() {
		t.Error("it does not know yet")
	}
}

// TestBrokenPipeline: a connection that breaks leaves in doubt what was written to it, all
// of it.
func TestBrokenPipeline(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	proxy := newLossyProxy(t, server.Address)
	r := openRedis(t, at(proxy.address))
	take(t, r, one("a"))
	together := orders(50)
	proxy.losing.Store(true)
	ctx, cancel := r.soon(t.Context())
	defer cancel()
	r.sendByAccount(ctx, r.client, together)
	first := 0
	for _, op := range together {
		wantKnown(t, op.err, inDoubt)
		if firstOf(op.err, 0) {
			first++
		}
	}
	if first != 1 {
		t.Errorf("it counts as %d failures: want 1", first)
	}

	address, err := devstack.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	nowhere := openRedis(t, at(address))
	nowhere.sendByAccount(ctx, nowhere.client, together)
	for _, op := range together {
		wantKnown(t, op.err, notSent)
		if !errors.Is(op.err, syscall.ECONNREFUSED) {
			t.Errorf("%v does not wrap the cause", op.err)
		}
	}
}

// TestBatchesAreFewPieces: what a batch is sent as does not take more pieces of memory the
// more orders and settlements there are in it.
func TestBatchesAreFewPieces(t *testing.T) { //nolint:paralleltest // others would be counted too
	pieces := func(n int) float64 {
		together := operations(n, func(i int) *operation {
			o := benchOrder(i, true, true)
			if i%2 == 1 {
				return &operation{settlement: &quota.Settlement{Account: o.Account, Request: o.Request, Secret: o.Secret, Used: quota.Cost{Tokens: 7000}}}
			}
			return &operation{order: o}
		})
		return testing.AllocsPerRun(20, func() {
			keys, args := batchArguments("tiergate", together)
			newScriptCall(t.Context(), "evalsha", "", keys, args)
		})
	}
	if few, many := pieces(4), pieces(mostTogether); many > few+16 { // a text that grows
		t.Errorf("%v allocations for %d operations, %v for 4", many, mostTogether, few)
	}
}

// TestOrdersKnowNothingOfOthers: one that comes after one that failed, was refused or repeated
// another has an answer of its own.
func TestOrdersKnowNothingOfOthers(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	r := openRedis(t, at(server.Address))
	do(t, server, "SET", countsKey("test", "bad"), "text")
	kept := one("kept")
	kept.Request, kept.Secret, kept.Keep = "r", "s", time.Minute
	for range 10 {
		if taken, err := r.Take(t.Context(), of("bad", charge(quota.Minute, 10, 1))); err == nil {
			t.Fatalf("%+v", taken)
		}
		if taken, err := r.Take(t.Context(), of("full", charge(quota.Minute, 0, 1))); err != nil || taken.Admitted || taken.Secret != "" {
			t.Fatalf("%+v, %v", taken, err)
		}
		if taken, err := r.Take(t.Context(), kept); err != nil || !taken.Admitted || taken.Secret != "s" || taken.Used[0] != 1 {
			t.Fatalf("%+v, %v", taken, err)
		}
		if taken, err := r.Take(t.Context(), of("good", charge(quota.Minute, 100, 1))); err != nil || !taken.Admitted || taken.Secret != "" {
			t.Fatalf("%+v, %v", taken, err)
		}
	}
}

// TestPlansOfABatch: orders that differ in one respect alone are carried out each by its own plan.
func TestPlansOfABatch(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	plain, lower, slides, elsewhere := charge(quota.Month, 10, 5), charge(quota.Month, 4, 5), charge(quota.Month.Slide(), 10, 5), charge(quota.Month, 10, 5)
	slides.Counter, elsewhere.Counter = plain.Counter, "requests/month@images"
	charges := []quota.Charge{plain, lower, slides, elsewhere, plain}
	together := make([]*operation, len(charges))
	for i, c := range charges {
		o := of("a"+strconv.Itoa(i), c)
		together[i] = &operation{order: &o}
	}
	send(t, r, together)
	for i, o := range together {
		if admitted := charges[i] != lower; o.err != nil || o.taken.Admitted != admitted || (len(o.taken.Before) > 0) != (charges[i] == slides) {
			t.Errorf("order %d: %+v, %v", i, o.taken, o.err)
		}
	}
	wantTaken(t, take(t, r, of("a3", charge(quota.Month, 10, 0))), true, 0)
}

// TestAnswersThatAreNone: what Redis should never answer fails all operations of a call, of which it is
// not known what was done.
func TestAnswersThatAreNone(t *testing.T) {
	t.Parallel()
	const now = int64(1772366430000)
	for name, c := range map[string]struct {
		values   any
		admitted bool // and settled
	}{
		"as it should be":            {[]any{now, int64(1), int64(5), int64(1)}, true},
		"no list":                    {"OK", false},
		"nothing":                    {[]any{}, false},
		"no answer to the last":      {[]any{now, int64(1), int64(5)}, false},
		"no number of what is used":  {[]any{now, int64(1), nil, int64(1)}, false},
		"a text where a number is":   {[]any{now, int64(1), "5", int64(1)}, false},
		"one answer more":            {[]any{now, int64(1), int64(5), int64(1), int64(1)}, false},
		"neither admitted nor not":   {[]any{now, int64(3), int64(5), int64(1)}, false},
		"a repeat without a secret":  {[]any{now, int64(2), now, int64(5), int64(1)}, false},
		"neither settled nor not":    {[]any{now, int64(1), int64(5), int64(3)}, false},
		"less than that":             {[]any{now, int64(1), int64(5), int64(-1)}, false},
		"no time":                    {[]any{nil, int64(1), int64(5), int64(1)}, false},
		"of a settlement not a word": {[]any{now, int64(1), int64(5), nil}, false},
	} {
		o := one("a")
		together := []*operation{{order: &o}, {settlement: &quota.Settlement{Account: "a"}}}
		reply := redis.NewCmd(t.Context())
		reply.SetVal(c.values)
		answer(together, reply)
		for _, o := range together {
			var e *callError
			if c.admitted != (o.err == nil) || (o.err != nil && (!errors.As(o.err, &e) || e.outcome != inDoubt)) {
				t.Errorf("%s: %v", name, o.err)
			}
		}
		if c.admitted && (!together[0].taken.Admitted || together[0].taken.Used[0] != 5 || together[1].outcome != quota.Settled) {
			t.Errorf("%s: %+v, %s", name, together[0].taken, together[1].outcome)
		}
	}
}
