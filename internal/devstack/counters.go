package devstack

import (
	"encoding/binary"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A Counter is what TierGate keeps of a limit in Redis.
type Counter struct {
	Start time.Time // of its window
	Used  int64
}

var counterHead = regexp.MustCompile(`([^ ]+) (\d+);`)

// Counters reads the counters of an account, by their names, as internal/store's common.lua
// writes them.
func Counters(text string) (map[string]Counter, error) {
	head, numbers, found := strings.Cut(text, "|")
	names := counterHead.FindAllStringSubmatch(head, -1)
	if !found || len(numbers) != 8*len(names) {
		return nil, fmt.Errorf("read %q: it is no head with %d numbers after it", text, len(names))
	}
	counters := make(map[string]Counter, len(names))
	for i, name := range names {
		start, err := strconv.ParseInt(name[2], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read %q: %w", text, err)
		}
		used := math.Float64frombits(binary.LittleEndian.Uint64([]byte(numbers[8*i:])))
		counters[name[1]] = Counter{time.UnixMilli(start).UTC(), int64(used)}
	}
	return counters, nil
}
