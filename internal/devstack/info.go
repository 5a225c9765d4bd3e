package devstack

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseInfo returns the numbers in what Redis answers to INFO, by name, such as
// used_cpu_user; of commands, such as cmdstat_evalsha, how often they were called. Lines
// without a number are left out. A command without one is an error.
func ParseInfo(text string) (map[string]float64, error) {
	numbers := map[string]float64{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		command := strings.HasPrefix(name, "cmdstat_")
		if command {
			value, _, _ = strings.Cut(strings.TrimPrefix(value, "calls="), ",")
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil && command {
			return nil, fmt.Errorf("read how often Redis was called in %q: %w", line, err)
		}
		if err == nil {
			numbers[name] = n
		}
	}
	return numbers, nil
}
