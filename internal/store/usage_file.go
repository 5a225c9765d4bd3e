package store

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/tiergate/tiergate/internal/usage"
)

// FileUsage keeps usage in the file of one node. It is the plain statement of what
// usage.lua and fleet.lua do. It is safe for concurrent use, if the batches of one
// instance come one after another.
//
// In the file, each kind of block has a bucket, and in it a bucket for each block,
// which is deleted as a whole when it has ended.
type FileUsage struct {
	file    *File
	now     func() time.Time
	busy    chan struct{} // has one, while a batch is being added
	timeout time.Duration // of adding a batch

	mu        sync.Mutex
	instances []usage.Instance // only this process's, so they need not outlive it
}

// NewFileUsage returns the usage in a file. now says what has ended.
func NewFileUsage(f *File, now func() time.Time) *FileUsage {
	return &FileUsage{file: f, now: now, busy: make(chan struct{}, 1), timeout: diskTimeout}
}

// diskTimeout is how long a batch may take: a disk that stalls is to be in the log.
const diskTimeout = 10 * time.Second

// Blocks of what only a file keeps in blocks.
func refusalBlock() block { return block{"refusals", 24 * time.Hour, 0, refusalsKept} }

func lastBlock() block { return block{"last", dayBlock().length, 0, lastUsedKept} }

func batchBlock() block { return block{"batches", time.Hour, 0, batchKept} }

func allBlocks() []block {
	return append(pointBlocks(), topBlock(), nearBlock(), refusalBlock(), lastBlock(), batchBlock())
}

// separator ends an account's ID in the name of a field; no ID holds it.
const separator = "\x00"

func (b block) bucket() []byte { return []byte("usage_" + b.name) }

// blockName names a block so that blocks are in order.
func blockName(number int64) []byte { return fmt.Appendf(nil, "%012d", number) }

// Add implements usage.Store: the batch is added as a whole, and not again. What has
// ended is deleted first. Where the disk does not take it in time it may be added yet.
func (u *FileUsage) Add(ctx context.Context, b usage.Batch) error {
	ctx, cancel := context.WithTimeout(ctx, u.timeout)
	defer cancel()
	added := make(chan error, 1)
	select {
	case u.busy <- struct{}{}:
		go func() { // nothing ends a write of a file
			defer func() { <-u.busy }()
			added <- u.add(&b)
		}()
	case <-ctx.Done(): // the batch before is being added
	}
	select {
	case err := <-added:
		return err
	case <-ctx.Done():
		return fmt.Errorf("add usage to the file: it has not been written in time: see to the disk of store.memory.file: %w", ctx.Err())
	}
}

func (u *FileUsage) add(b *usage.Batch) error {
	err := u.file.update(func(tx *bbolt.Tx) error {
		a := adding{tx: tx, now: u.now(), buckets: map[string]*bbolt.Bucket{}}
		if err := a.deleteEnded(); err != nil {
			return err
		}
		if a.added(b) {
			return nil
		}
		for i := range b.Accounts {
			a.account(&b.Accounts[i], b.Made)
		}
		return a.err
	})
	if err != nil {
		return fmt.Errorf("add usage to the file: %w", err)
	}
	return nil
}

// An adding is one transaction that adds a batch. Its first error ends it.
type adding struct {
	tx      *bbolt.Tx
	now     time.Time
	buckets map[string]*bbolt.Bucket // that are open, by kind and number
	err     error
}

// deleteEnded deletes the blocks that need not be kept any more.
func (a *adding) deleteEnded() error {
	for _, b := range allBlocks() {
		kind, err := a.tx.CreateBucketIfNotExists(b.bucket())
		if err != nil {
			return err
		}
		for name, _ := kind.Cursor().First(); name != nil; name, _ = kind.Cursor().First() {
			n, err := strconv.ParseInt(string(name), 10, 64)
			if err == nil && b.ends(n).After(a.now) {
				break
			}
			if err := kind.DeleteBucket(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// open returns the bucket of the block that holds an instant.
func (a *adding) open(b block, at time.Time) *bbolt.Bucket {
	n := b.number(at)
	key := b.name + strconv.FormatInt(n, 10)
	if bucket := a.buckets[key]; bucket != nil || a.err != nil {
		return bucket
	}
	bucket, err := a.tx.Bucket(b.bucket()).CreateBucketIfNotExists(blockName(n))
	a.buckets[key], a.err = bucket, err
	return bucket
}

// change replaces the text of a field, which is empty where it is new.
func (a *adding) change(b block, at time.Time, name string, change func(text string) (string, error)) {
	bucket := a.open(b, at)
	if a.err != nil {
		return
	}
	text, err := change(string(bucket.Get([]byte(name))))
	if err == nil {
		err = bucket.Put([]byte(name), []byte(text))
	}
	a.err = err
}

// added reports whether the batch was added before, and remembers it.
func (a *adding) added(b *usage.Batch) bool {
	kind := a.tx.Bucket(batchBlock().bucket())
	c := kind.Cursor()
	for name, _ := c.First(); name != nil; name, _ = c.Next() {
		if string(kind.Bucket(name).Get([]byte(b.Instance))) == b.ID {
			return true
		}
	}
	a.change(batchBlock(), a.now, b.Instance, func(string) (string, error) { return b.ID, nil })
	return false
}

// account adds what a batch says of one account.
func (a *adding) account(of *usage.Account, made time.Time) {
	for i := range of.Cells {
		a.cell(of, &of.Cells[i])
	}
	if !of.Last.IsZero() {
		a.change(lastBlock(), of.Last, of.ID, func(text string) (string, error) { return largest(text, of.Last.Unix()) })
	}
	for _, r := range of.Refusals {
		a.change(refusalBlock(), r.At, of.ID, func(text string) (string, error) { return withRefusal(text, r, a.now) })
	}
	if of.IsKey() {
		a.rank(of, made)
	}
}

// cell adds a cell to the points of each step.
func (a *adding) cell(of *usage.Account, c *usage.Cell) {
	at := minuteTime(c.Minute, a.now)
	var minute sum
	var whole total
	for i, b := range pointBlocks() {
		slot := of.ID + separator + strconv.FormatInt(b.slot(at), 10)
		a.change(b, at, slot+" "+c.Label, func(text string) (string, error) {
			s, err := parseSum(cmp.Or(text, sum{}.String()))
			s.Add(c.Counts)
			if i == 0 { // its busiest minute is all it has
				s.peakRequests, s.peakTokens = s.Admitted, usage.Sum(s.InputTokens, s.OutputTokens)
				minute = s
			}
			s.peakRequests, s.peakTokens = max(s.peakRequests, minute.peakRequests), max(s.peakTokens, minute.peakTokens)
			return s.String(), err
		})
		a.change(b, at, slot, func(text string) (string, error) {
			t, err := parseTotal(cmp.Or(text, total{}.String()))
			if i == 0 {
				t.requests = usage.Sum(t.requests, c.Admitted)
				t.tokens = usage.Sum(t.tokens, usage.Sum(c.InputTokens, c.OutputTokens))
				whole = t
			}
			t.requests, t.tokens = max(t.requests, whole.requests), max(t.tokens, whole.tokens)
			t.limitRequests, t.limitTokens = cmp.Or(of.LimitRequests, t.limitRequests), cmp.Or(of.LimitTokens, t.limitTokens)
			return t.String(), err
		})
	}
}

// rank adds to the account's places.
func (a *adding) rank(of *usage.Account, made time.Time) {
	for _, h := range byHour(of.Cells) {
		for _, by := range usage.Ranks() {
			n := rankOf(h.counts, by)
			if n == 0 {
				continue
			}
			a.change(topBlock(), minuteTime(h.first, a.now), string(by)+separator+of.ID, func(text string) (string, error) {
				before, err := strconv.ParseInt(cmp.Or(text, "0"), 10, 64)
				return strconv.FormatInt(usage.Sum(before, n), 10), err
			})
		}
	}
	if of.Near.Limit == "" {
		return
	}
	a.change(nearBlock(), made, of.ID+separator+of.Near.Limit, func(text string) (string, error) {
		before, err := strconv.ParseFloat(cmp.Or(text, "0"), 64)
		return strconv.FormatFloat(max(before, of.Near.Share), 'g', -1, 64), err
	})
}

// largest returns the larger of a number in a text, which may be empty, and another.
func largest(text string, n int64) (string, error) {
	before, err := strconv.ParseInt(cmp.Or(text, "0"), 10, 64)
	return strconv.FormatInt(max(before, n), 10), err
}

// withRefusal adds a refusal to a list of them, and forgets the oldest.
func withRefusal(text string, r usage.Refusal, now time.Time) (string, error) {
	var list []usage.Refusal
	if err := json.Unmarshal([]byte(cmp.Or(text, "[]")), &list); err != nil {
		return "", fmt.Errorf("read refusals: %w", err)
	}
	changed, err := json.Marshal(latestRefusals(append(list, r), now))
	return string(changed), err
}
