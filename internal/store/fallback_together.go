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
	key := f.redis.prefix + ":{" + f.redis.checked[p.number].account + "}:back"
	answer, err := f.redis.runForNumbers(ctx, f.backs, 2, []string{key}, backKept.Milliseconds())
	if err != nil {
		f.failed(p, fmt.Errorf("find out since when Redis is back: %w", err))
		return false
	}
	since := time.Duration(answer[1]-answer[0]) * time.Millisecond
	return since >= gathering || waits(ctx, gathering-since)
}
