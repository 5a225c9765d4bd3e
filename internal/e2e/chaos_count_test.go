package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// keyEntry is an entry of a keys file. The key's ID is the secret with another beginning.
func keyEntry(secret, tier string) string {
	return fmt.Sprintf("  - {id: %s, hash: \"sha256:%x\", tier: %s}\n", keyID(secret), sha256.Sum256([]byte(secret)), tier)
}

func keyID(secret string) string {
	return "key_" + strings.ReplaceAll(strings.TrimPrefix(secret, "sk-"), "-", "_")
}

// patient lets Envoy wait longer for TierGate than as shipped.
func patient(file []byte) []byte {
	file = bytes.ReplaceAll(file, []byte("timeout: 0.25s"), []byte("timeout: 5s"))
	return bytes.ReplaceAll(file, []byte("max_interval: 0.25s"), []byte("max_interval: 5s"))
}

// withEndpoints gives the cluster whose endpoint has a port in the shipped file further ones.
func withEndpoints(t *testing.T, file []byte, port int, addresses []string) []byte {
	t.Helper()
	return edited(t, string(file), func(doc map[string]any) {
		walk(doc, func(name string, list []any) []any {
			if name != "lb_endpoints" || !strings.Contains(fmt.Sprint(list), fmt.Sprintf("port_value:%d", port)) {
				return list
			}
			for _, address := range addresses {
				host, port, _ := strings.Cut(address, ":")
				number, err := strconv.Atoi(port)
				if err != nil {
					t.Fatal(err)
				}
				list = append(list, map[string]any{"endpoint": map[string]any{"address": map[string]any{
					"socket_address": map[string]any{"address": host, "port_value": number},
				}}})
			}
			return list
		})
	})
}

// envoyStat returns a counter or gauge of Envoy's, 0 where it has none yet.
func envoyStat(t *testing.T, s *devstack.Stack, name string) int {
	t.Helper()
	response, err := client.Get("http://" + s.Admin + "/stats?filter=^" + name + "$")
	if err != nil {
		t.Fatal(err)
	}
	_, value, _ := strings.Cut(strings.TrimSpace(read(t, response).body), ": ")
	n, _ := strconv.Atoi(value)
	return n
}

// over returns how many requests were admitted above the limits of the narrow keys, all
// windows and instances together.
func (f *trial) over() int {
	sum := 0
	for _, n := range f.admitted(func(o outcome) any { return [2]any{o.key, o.window} }) {
		sum += max(0, n-f.narrow)
	}
	return sum
}

// overAlone returns by how much the instances behind an Envoy, while the fault lasted and
// they counted by themselves, went beyond their shares of a whole limit.
func (f *trial) overAlone() int {
	behind := len(f.stacks) / len(f.edges)
	share := (f.narrow + len(f.stacks) - 1) / len(f.stacks)
	worst := 0
	for _, n := range f.admitted(func(o outcome) any {
		if end := o.due + o.took; !o.degraded || end < f.struck || end > f.healed {
			return nil
		}
		return [3]any{o.key, o.window, o.edge}
	}) {
		worst = max(worst, n-behind*share)
	}
	return worst
}

// admitted counts what was admitted of the narrow keys, by what group returns; nil
// leaves out.
func (f *trial) admitted(group func(outcome) any) map[any]int {
	counts := map[any]int{}
	for _, o := range f.outcomes {
		if o.status == http.StatusOK && strings.HasPrefix(o.key, "sk-narrow") {
			if g := group(o); g != nil {
				counts[g]++
			}
		}
	}
	return counts
}

// count compares what clients saw admitted with what is counted. It waits until both
// agree, since the settlements of the last answers are under way.
func (f *trial) count(r *row) {
	f.t.Helper()
	sent := map[string]int{}
	for _, o := range f.outcomes {
		if o.status == http.StatusOK {
			sent[o.key]++
		}
	}
	end := time.Now().Add(pick(10*time.Second, 4*time.Second))
	tick := time.NewTicker(500 * time.Millisecond) // a key may not ask more often
	defer tick.Stop()
	for {
		r.lost, r.doubt, r.tokens = 0, 0, 0
		var wrong error
		for i := range countedKeys {
			key := countedKey(i)
			requests, tokens, err := usedToday(f.stacks[0], key)
			if err != nil {
				wrong = err
			}
			r.lost += max(0, sent[key]-requests)
			r.doubt += max(0, requests-sent[key])
			r.tokens += tokens - usageTokens*sent[key]
		}
		if over := time.Now().After(end); over && wrong != nil {
			f.t.Errorf("the counts in the end: %v", wrong)
			return
		} else if over || wrong == nil && r.lost == 0 && r.doubt == 0 && r.tokens == 0 {
			return
		}
		<-tick.C
	}
}

// usedToday asks an instance what a key of the tier counted has used of its daily limits.
func usedToday(s *devstack.Stack, key string) (requests, tokens int, err error) {
	r, err := http.NewRequest(http.MethodGet, "http://"+s.Customer+"/v1/limits", http.NoBody)
	if err != nil {
		return 0, 0, err
	}
	r.Header.Set("Authorization", "Bearer "+key)
	response, err := client.Do(r)
	if err != nil {
		return 0, 0, err
	}
	defer response.Body.Close()
	var view struct {
		Limits []struct {
			Name string `json:"name"`
			Used int    `json:"used"`
		} `json:"limits"`
	}
	if err := json.NewDecoder(response.Body).Decode(&view); err != nil || response.StatusCode != http.StatusOK {
		return 0, 0, fmt.Errorf("the limits of %s: %s: %w", keyID(key), response.Status, err)
	}
	for _, l := range view.Limits {
		switch l.Name {
		case "requests_per_day":
			requests = l.Used
		case "tokens_per_day":
			tokens = l.Used
		}
	}
	return requests, tokens, nil
}
