package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"github.com/tiergate/tiergate/internal/usage"
)

// view reads blocks of one kind, those that there are, in the order of their numbers.
func (u *FileUsage) view(what string, b block, numbers []int64, read func(number int64, block *bbolt.Bucket) error) error {
	err := u.file.view(func(tx *bbolt.Tx) error {
		kind := tx.Bucket(b.bucket())
		for _, n := range numbers {
			if kind == nil {
				return nil
			}
			block := kind.Bucket(blockName(n))
			if block == nil {
				continue
			}
			if err := read(n, block); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read %s in the file: %w", what, err)
	}
	return nil
}

// each yields the fields of a block whose names begin with a prefix, without it.
func each(block *bbolt.Bucket, prefix string, yield func(name, text string) error) error {
	c := block.Cursor()
	for name, text := c.Seek([]byte(prefix)); bytes.HasPrefix(name, []byte(prefix)) && name != nil; name, text = c.Next() {
		if err := yield(string(name[len(prefix):]), string(text)); err != nil {
			return err
		}
	}
	return nil
}

// Series returns the points of an account; see RedisUsage.Series.
func (u *FileUsage) Series(_ context.Context, account string, q usage.Query) ([]usage.Point, error) {
	b, err := blockOf(q.Step)
	if err != nil {
		return nil, err
	}
	q = clamped(q, u.now())
	s := newSeries(q)
	err = u.view("the usage of "+account, b, b.numbers(q.From, q.To), func(n int64, block *bbolt.Bucket) error {
		return each(block, account+separator, func(name, text string) error { return s.add(b, n, name, text) })
	})
	if err != nil {
		return nil, err
	}
	return s.sorted(), nil
}

// Refusals returns the latest refusals of an account, the newest first: at most 50, of
// the last 8 days.
func (u *FileUsage) Refusals(_ context.Context, account string) ([]usage.Refusal, error) {
	now := u.now()
	all := []usage.Refusal{}
	b := refusalBlock()
	err := u.view("the refusals of "+account, b, b.numbers(now.Add(-refusalsKept), now), func(_ int64, block *bbolt.Bucket) error {
		text := block.Get([]byte(account))
		if text == nil {
			return nil
		}
		var some []usage.Refusal
		err := json.Unmarshal(text, &some)
		all = append(all, some...)
		return err
	})
	return latestRefusals(all, now), err
}

// LastUsed returns when accounts were last used; see RedisUsage.LastUsed.
func (u *FileUsage) LastUsed(_ context.Context, accounts []string) (map[string]time.Time, error) {
	if err := checkLastUsed(accounts); err != nil {
		return nil, err
	}
	now := u.now()
	used := map[string]time.Time{}
	b := lastBlock()
	err := u.view("when accounts were last used", b, b.numbers(now.Add(-lastUsedKept), now), func(_ int64, block *bbolt.Bucket) error {
		for _, a := range accounts {
			text := block.Get([]byte(a))
			if text == nil {
				continue
			}
			seconds, err := strconv.ParseInt(string(text), 10, 64)
			if err != nil {
				return err
			}
			used[a] = time.Unix(seconds, 0).UTC() // later blocks come later
		}
		return nil
	})
	return used, err
}

// Top returns the accounts with the most of the hour that runs and so many before it,
// 1 to 24. It is exact.
func (u *FileUsage) Top(_ context.Context, by usage.Rank, hours, most int) ([]usage.Ranked, error) {
	numbers, err := topRange(by, hours, u.now())
	if err != nil {
		return nil, err
	}
	counts := map[string]int64{}
	err = u.view("the ranks of accounts", topBlock(), numbers, func(_ int64, block *bbolt.Bucket) error {
		return each(block, string(by)+separator, func(account, text string) error {
			n, err := strconv.ParseInt(text, 10, 64)
			counts[account] += n
			return err
		})
	})
	return ranked(counts, most), err
}

// Near returns the accounts that are near a limit; see RedisUsage.Near.
func (u *FileUsage) Near(context.Context) ([]usage.Near, error) {
	all := []usage.Near{}
	err := u.view("which accounts are near a limit", nearBlock(), nearRange(u.now()), func(_ int64, block *bbolt.Bucket) error {
		return each(block, "", func(name, text string) error {
			account, limit, _ := strings.Cut(name, separator)
			share, err := strconv.ParseFloat(text, 64)
			all = append(all, usage.Near{Account: account, Limit: limit, Share: share})
			return err
		})
	})
	return nearest(all), err
}

// Tell makes known what this process says of itself, for 30 s.
func (u *FileUsage) Tell(_ context.Context, i usage.Instance) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.instances = latest(append(u.instances, i), u.now())
	return nil
}

// Instances returns what was told last in the last 30 s.
func (u *FileUsage) Instances(context.Context) ([]usage.Instance, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return latest(slices.Clone(u.instances), u.now()), nil
}
