package store

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/usage"
)

// What both stores of usage share: blocks, fields and their texts.
//
// The points of a step are kept in blocks, each of so many slots, that end as a whole.
// A block has two kinds of fields: "<slot> <label>" says what the requests of a label
// came to, and "<slot>" what the busiest minute of all together was, and the limits.
// Blocks are so short that, up to three labels, Redis keeps them in its compact form,
// which ends at 128 fields.

// A block is one stretch of time of which something is kept.
type block struct {
	name   string // of what is kept
	length time.Duration
	slots  int64         // 0: it is not divided
	keep   time.Duration // after its end
}

// Blocks of points, the shortest step first.
func minuteBlock() block {
	return block{"minutes", 30 * time.Minute, 30, usage.Minute.Keep()}
}

func hourBlock() block {
	return block{"hours", 24 * time.Hour, 24, usage.Hour.Keep()}
}

func dayBlock() block {
	return block{"days", 32 * 24 * time.Hour, 32, usage.Day.Keep()}
}

// pointBlocks are the blocks that every request counts in.
func pointBlocks() []block { return []block{minuteBlock(), hourBlock(), dayBlock()} }

// blockOf returns the blocks of a step.
func blockOf(s usage.Step) (block, error) {
	switch s {
	case usage.Minute:
		return minuteBlock(), nil
	case usage.Hour:
		return hourBlock(), nil
	case usage.Day:
		return dayBlock(), nil
	default:
		return block{}, fmt.Errorf("step %d is unknown: want usage.Minute, usage.Hour or usage.Day", s)
	}
}

// number returns the number of the block that holds an instant.
func (b block) number(at time.Time) int64 {
	return at.Unix() / int64(b.length.Seconds())
}

// slot returns the instant's place in its block.
func (b block) slot(at time.Time) int64 {
	return (at.Unix() - b.number(at)*int64(b.length.Seconds())) / (int64(b.length.Seconds()) / b.slots)
}

// start returns when a slot of a block begins.
func (b block) start(number, slot int64) time.Time {
	step := b.length
	if b.slots > 0 {
		step /= time.Duration(b.slots)
	}
	return time.Unix(number*int64(b.length.Seconds())+slot*int64(step.Seconds()), 0).UTC()
}

// ends returns when a block need not be kept any more.
func (b block) ends(number int64) time.Time { return b.start(number+1, 0).Add(b.keep) }

// numbers returns the blocks that a query reaches into, the latest last.
func (b block) numbers(from, to time.Time) []int64 {
	var numbers []int64
	for n := b.number(from); n <= b.number(to) && from.Before(to); n++ {
		numbers = append(numbers, n)
	}
	return numbers
}

// clamped returns the query for no more than is kept, the step in which that begins as a
// whole, and none for the future.
func clamped(q usage.Query, now time.Time) usage.Query {
	oldest, newest := now.Add(-q.Step.Keep()).Truncate(q.Step.Length()), now.Add(q.Step.Length())
	if q.From.Before(oldest) {
		q.From = oldest
	}
	if q.To.After(newest) {
		q.To = newest
	}
	return q
}

// minuteTime returns when a minute of a batch began. One that lies in the future, or
// before anything is kept of it, was told by a clock that is wrong, and is cut to that.
func minuteTime(minute int64, now time.Time) time.Time {
	latest := now.Unix() / 60
	return time.Unix(60*min(max(minute, latest-int64(usage.Hour.Keep().Minutes())), latest), 0)
}

const (
	mostRefusals = 50
	refusalsKept = 8 * 24 * time.Hour
	mostLastUsed = 1000
	lastUsedKept = 400 * 24 * time.Hour
	mostTopHours = 24
	mostNear     = 100
	nearFor      = 2 * time.Minute // how long a share counts as one of lately
	instanceKept = 30 * time.Second
	batchKept    = usage.BatchKept + time.Hour // clocks differ
)

// topBlock are the blocks by which accounts are ranked.
func topBlock() block { return block{"top", time.Hour, 0, (mostTopHours + 1) * time.Hour} }

// nearBlock are the blocks of who is near a limit.
func nearBlock() block { return block{"near", time.Minute, 0, nearFor} }

// nearRange returns the blocks that Near looks at.
func nearRange(now time.Time) []int64 { return nearBlock().numbers(now.Add(-nearFor), now) }

// topRange returns the blocks that Top looks at: the hour that runs, and those before.
func topRange(by usage.Rank, hours int, now time.Time) ([]int64, error) {
	if !slices.Contains(usage.Ranks(), by) {
		return nil, fmt.Errorf("rank accounts by %q: want one of %q", by, usage.Ranks())
	}
	if hours < 1 || hours > mostTopHours {
		return nil, fmt.Errorf("rank accounts over %d hours: want 1 to %d", hours, mostTopHours)
	}
	return topBlock().numbers(now.Add(-time.Duration(hours)*time.Hour), now), nil
}

// An hourly is what an account's requests of one hour came to.
type hourly struct {
	first  int64 // minute
	counts usage.Counts
}

// byHour sums cells up, which are in order.
func byHour(cells []usage.Cell) []hourly {
	var hours []hourly
	for i := range cells {
		c := &cells[i]
		if n := len(hours); n == 0 || hours[n-1].first/60 != c.Minute/60 {
			hours = append(hours, hourly{first: c.Minute})
		}
		hours[len(hours)-1].counts.Add(c.Counts)
	}
	return hours
}

// ranked returns the accounts with the highest counts, at most so many.
func ranked(counts map[string]int64, most int) []usage.Ranked {
	list := make([]usage.Ranked, 0, len(counts))
	for account, n := range counts {
		if n > 0 {
			list = append(list, usage.Ranked{Account: account, Count: n})
		}
	}
	slices.SortFunc(list, func(a, b usage.Ranked) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Account, b.Account))
	})
	return list[:min(len(list), max(most, 0))]
}

// rankOf returns what an account's place goes by.
func rankOf(c usage.Counts, by usage.Rank) int64 {
	switch by {
	case usage.ByRequests:
		return c.Requests()
	case usage.ByTokens:
		return c.InputTokens + c.OutputTokens
	case usage.ByRefusals:
		return c.Requests() - c.Admitted
	default:
		return 0
	}
}

// nearest returns each account once, by its highest share, at most mostNear.
func nearest(all []usage.Near) []usage.Near {
	slices.SortFunc(all, func(a, b usage.Near) int {
		return cmp.Or(cmp.Compare(b.Share, a.Share), strings.Compare(a.Account, b.Account), strings.Compare(a.Limit, b.Limit))
	})
	seen := map[string]bool{}
	all = slices.DeleteFunc(all, func(n usage.Near) bool {
		again := seen[n.Account]
		seen[n.Account] = true
		return again
	})
	return all[:min(len(all), mostNear)]
}

// latestRefusals returns the latest of them, the newest first, and none twice.
func latestRefusals(all []usage.Refusal, now time.Time) []usage.Refusal {
	all = slices.DeleteFunc(all, func(r usage.Refusal) bool { return !r.At.After(now.Add(-refusalsKept)) })
	slices.SortStableFunc(all, func(a, b usage.Refusal) int { return b.At.Compare(a.At) })
	return all[:min(len(all), mostRefusals)]
}

// latest returns one telling of each instance, the last, by ID, and none that is old.
func latest(all []usage.Instance, now time.Time) []usage.Instance {
	byID := map[string]usage.Instance{}
	for _, i := range all {
		if i.Seen.After(now.Add(-instanceKept)) && !i.Seen.Before(byID[i.ID].Seen) {
			byID[i.ID] = i
		}
	}
	list := make([]usage.Instance, 0, len(byID))
	for _, i := range byID {
		list = append(list, i)
	}
	slices.SortFunc(list, func(a, b usage.Instance) int { return strings.Compare(a.ID, b.ID) })
	return list
}

func checkLastUsed(accounts []string) error {
	if len(accounts) > mostLastUsed {
		return fmt.Errorf("find when %d accounts were last used: ask for at most %d at once", len(accounts), mostLastUsed)
	}
	return nil
}
