package store

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/quota"
)

const (
	// mostTogether is how many operations go in one call at the most. So many do not wait
	// for the calls that are under way.
	mostTogether = 128
	// enough is how many do not wait for a call that is under way alone: then Redis has work
	// while the answers of the first are handed out. Fewer would cost it more than that gives.
	enough = 32
	// mostWait is how long an operation waits for that call, where the network is slow.
	mostWait = 2 * time.Millisecond
	// companyWait is how long a settlement waits for a call to go with. Nobody's request
	// waits for it.
	companyWait = 5 * time.Millisecond
)

// An operation is an order or a settlement of one caller, and what became of it.
type operation struct {
	order      *quota.Order      // nil: it is a settlement
	settlement *quota.Settlement // nil: it is an order
	server     *redis.Client     // of a Cluster, that has the account

	taken   quota.Taken
	outcome quota.Outcome
	err     error
	told    func(*quota.Order, *quota.Taken) // of an order, see Redis; nil: nobody is

	waits bool          // another caller sends it, and done has one when that is done
	done  chan struct{} // nil: it has not waited yet
	alone bool          // it was not carried out, and its own caller is to send it
	until time.Time     // then, the end of its time

	own quota.Order // that order points to, of one that is used again
}

// wait notes that another caller sends it.
func (o *operation) wait() {
	o.waits = true
	if o.done == nil {
		o.done = make(chan struct{}, 1)
	}
}

// account returns whose counters it is about.
func (o *operation) account() string {
	if o.order != nil {
		return o.order.Account
	}
	return o.settlement.Account
}

// A lane sends operations to one server. One that comes while nothing is under way is sent
// at once, by its own caller. Those that come while a call is under way are gathered, and
// the first of them sends them all when that call has returned, when they are enough for a
// second one or, beside two, mostTogether, or after mostWait. Settlements wait for company, and
// go before the others of the next call, which so find the counters corrected. No goroutine is
// the lane's own.
type lane struct {
	timeout time.Duration // of an operation, from when it is asked for; of a settlement, from when it is sent
	send    func(ctx context.Context, together []*operation)

	mu          sync.Mutex
	underWay    []*group     // a call each
	gathering   *group       // nil: nobody waits. There is none while no call is under way
	settlements []*operation // that wait for company, mostTogether at the most
}

// A group is operations that go together.
type group struct {
	operations []*operation
	turn       chan struct{} // has one when the first that waited is to send them; nil: none waits for that
	late       *time.Timer
}

// newLane returns a lane. What is sent has its answers when send returns, before the time of
// the first is over.
func (r *Redis) newLane(send func(context.Context, []*operation)) *lane {
	return &lane{timeout: r.options.Timeout, send: func(ctx context.Context, together []*operation) {
		if r.options.Sent != nil {
			r.options.Sent(len(together))
		}
		send(ctx, together)
	}}
}

// carryOut has an operation sent, alone or with others, and returns when it is answered. A
// caller who goes away does not end it.
func (l *lane) carryOut(ctx context.Context, o *operation) {
	l.mu.Lock()
	if o.settlement != nil {
		l.keepCompany(ctx, o)
		return
	}
	if len(l.underWay) == 0 {
		g := &group{operations: []*operation{o}}
		l.begin(g)
		l.mu.Unlock()
		ctx, cancel := within(ctx, l.timeout)
		defer cancel()
		l.sendAll(ctx, g)
		return
	}
	g := l.gathering
	if g == nil {
		l.lead(ctx, o)
		return
	}
	o.wait()
	g.operations = append(g.operations, o)
	l.sendIfEnough()
	l.mu.Unlock()
	<-o.done
}

// lead begins to gather, and sends what came together. The caller holds the lock, which it
// gives up.
func (l *lane) lead(ctx context.Context, o *operation) {
	g := &group{operations: []*operation{o}, turn: make(chan struct{}, 1)}
	g.late = time.AfterFunc(mostWait, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.gathering == g {
			l.release()
		}
	})
	l.gathering = g
	l.mu.Unlock()
	ctx, cancel := within(ctx, l.timeout)
	defer cancel()
	<-g.turn
	l.sendAll(ctx, g)
}

// keepCompany has a settlement go with the next call, or sends those that wait. The caller
// holds the lock, which it gives up.
func (l *lane) keepCompany(ctx context.Context, o *operation) {
	o.wait()
	l.settlements = append(l.settlements, o)
	if len(l.settlements) < mostTogether {
		l.mu.Unlock()
		timer := time.NewTimer(companyWait)
		defer timer.Stop()
		select {
		case <-o.done:
			return
		case <-timer.C:
		}
		l.mu.Lock()
	}
	if !slices.Contains(l.settlements, o) { // it is on its way
		l.mu.Unlock()
		<-o.done
		return
	}
	g := &group{}
	l.begin(g)
	l.mu.Unlock()
	ctx, cancel := within(ctx, l.timeout)
	defer cancel()
	l.sendAll(ctx, g)
}

// begin makes a group one of those under way. The settlements that wait go before what it has,
// as many as there is room for. The caller holds the lock.
func (l *lane) begin(g *group) {
	n := min(len(l.settlements), mostTogether-len(g.operations))
	g.operations = slices.Concat(l.settlements[:n], g.operations)
	l.settlements = slices.Clone(l.settlements[n:])
	l.underWay = append(l.underWay, g)
}

// sendAll sends a group that is under way, and wakes the callers of those that others send.
func (l *lane) sendAll(ctx context.Context, g *group) {
	err := errNotSent // unless it returns
	defer func() {
		l.returned(g)
		for _, o := range g.operations {
			o.err = cmp.Or(err, o.err)
			if o.waits { // and may be used again as soon as it is woken
				o.done <- struct{}{}
			}
		}
	}()
	l.send(ctx, g.operations)
	err = nil
}

// errNotSent is what the others get where the one who sends panics: it is not known what was
// done.
var errNotSent = errors.New("the call to Redis panicked: please report this")

// release has those sent that are gathered. The caller holds the lock.
func (l *lane) release() {
	g := l.gathering
	l.gathering = nil
	l.begin(g)
	g.late.Stop()
	g.turn <- struct{}{}
}

// returned notes that the call of a group has.
func (l *lane) returned(g *group) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.underWay, g)
	l.underWay = slices.Delete(l.underWay, i, i+1)
	l.sendIfEnough()
}

// sendIfEnough has those sent that are gathered, if they are so many that they do not wait for
// the calls under way. The caller holds the lock.
func (l *lane) sendIfEnough() {
	if l.gathering == nil {
		return
	}
	n := len(l.gathering.operations)
	if len(l.underWay) == 0 || len(l.underWay) == 1 && n >= enough || n == mostTogether {
		l.release()
	}
}

// add adds to sums, one for each charge of an order, what other orders of its account that have
// no answer yet take of the same counters. What is answered ahead the ledger knows.
func (l *lane) add(sums []int64, o *quota.Order) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, g := range l.underWay {
		g.add(sums, o)
	}
	if l.gathering != nil {
		l.gathering.add(sums, o)
	}
}

func (g *group) add(sums []int64, o *quota.Order) {
	for _, other := range g.operations {
		if other.order == nil || other.order.Account != o.Account || unlimited(*other.order) {
			continue
		}
		for _, c := range other.order.Charges {
			if i := slices.IndexFunc(o.Charges, func(own quota.Charge) bool { return own.Counter == c.Counter }); i >= 0 {
				sums[i] += max(c.Cost, 0)
			}
		}
	}
}

// underWay returns for each charge of an order what others of its account take of the same counter
// that are sent, or about to be, and have no answer yet. Those that go past the lanes, as while a slot
// is moving, are not among them.
func (r *Redis) underWay(o *quota.Order) []int64 {
	sums := make([]int64, len(o.Charges))
	r.lane.add(sums, o)
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, l := range r.lanes {
		l.add(sums, o)
	}
	return sums
}

// carryOut has an operation carried out.
func (r *Redis) carryOut(ctx context.Context, o *operation) {
	if cluster, ok := r.client.(*redis.ClusterClient); ok {
		r.carryOutInCluster(ctx, cluster, o)
	} else {
		r.lane.carryOut(ctx, o)
	}
	if o.alone {
		ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), o.until)
		defer cancel()
		r.sendTogether(ctx, []*operation{o})
	}
}

// carryOutInCluster has an operation carried out by the server that has its account.
func (r *Redis) carryOutInCluster(ctx context.Context, cluster *redis.ClusterClient, o *operation) {
	ctx, cancel := r.soon(ctx)
	defer cancel()
	server, err := cluster.MasterForKey(ctx, countsKey(r.prefix, o.account()))
	if err != nil { // the call will say why, or find it after all
		r.sendTogether(ctx, []*operation{o})
		return
	}
	o.server = server
	r.laneTo(server.Options().Addr).carryOut(ctx, o)
}

// laneTo returns the lane to a server of a Cluster.
func (r *Redis) laneTo(address string) *lane {
	r.mu.RLock()
	l := r.lanes[address]
	r.mu.RUnlock()
	if l != nil {
		return l
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if l = r.lanes[address]; l == nil {
		l = r.newLane(r.sendToServer)
		r.lanes[address] = l
	}
	return l
}
