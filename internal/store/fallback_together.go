package store

import (
	"context"
	"fmt"
	"time"
)

const (
	// gathering is how long after the first instance has found Redis back all of them go
	// there again: each has found it by then.
	gathering = 2 * probeInterval
	// backKept is how long Redis remembers when that was.
	backKept = 4 * gathering
)

// together returns when the other instances are about to go back to a part of Redis too.
// Until then each keeps to its share: one that went before would count without what others
// are yet to give back. It returns false where the part cannot be reached.
func (f *Fallback) together(ctx context.Context, p *part) bool {
	if f.Instances() == 1 || f.leaving.Load() {
		return true
	}
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.redis.options.Timeout)
	defer cancel()
	key := f.redis.prefix + ":{" + f.redis.checked[p.number].account + "}:back"
	reply, err := f.redis.run(asking, f.redis.client, f.backs, []string{key}, []any{backKept.Milliseconds()})
	var numbers []int64
	if err == nil {
		numbers, err = reply.Int64Slice()
	}
	if err == nil && len(numbers) != 2 {
		err = fmt.Errorf("%d numbers in the answer, want 2", len(numbers))
	}
	if err != nil {
		f.failed(p, fmt.Errorf("find out since when Redis is back: %w", err))
		return false
	}
	since := time.Duration(numbers[1]-numbers[0]) * time.Millisecond
	return since >= gathering || waits(ctx, gathering-since)
}
