package examples

import (
	"bytes"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
	yamlv3 "go.yaml.in/yaml/v3"
)

// A rule is an alert of rules.yaml.
type rule struct {
	Alert       string
	Expr        string
	For         time.Duration
	Labels      map[string]string
	Annotations map[string]string
}

// alertRules returns those that we ship.
func alertRules(t *testing.T) []rule {
	t.Helper()
	var file struct {
		Groups []struct {
			Name  string
			Rules []rule
		}
	}
	strictly(t, "prometheus/rules.yaml", &file)
	if len(file.Groups) != 1 || len(file.Groups[0].Rules) == 0 {
		t.Fatal("want one group of alerts")
	}
	return file.Groups[0].Rules
}

// strictly reads a YAML file, of which it knows every field.
func strictly(t *testing.T, name string, into any) {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	decoder := yamlv3.NewDecoder(bytes.NewReader(content))
	decoder.KnownFields(true)
	if err := decoder.Decode(into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// An alertTest is one of rules-test.yaml, as promtool has them.
type alertTest struct {
	Name     string
	Interval time.Duration
	Series   []struct{ Series, Values string } `yaml:"input_series"`
	Asked    []struct {
		At   time.Duration `yaml:"eval_time"`
		Expr string
		Want []struct {
			Labels string
			Value  float64
		} `yaml:"exp_samples"`
	} `yaml:"promql_expr_test"`
}

// TestAlerts runs rules-test.yaml in Prometheus' engine, as promtool test rules does.
func TestAlerts(t *testing.T) {
	t.Parallel()
	var file struct {
		RuleFiles []string      `yaml:"rule_files"`
		Interval  time.Duration `yaml:"evaluation_interval"`
		Tests     []alertTest
	}
	strictly(t, "prometheus/rules-test.yaml", &file)
	rules, seen := alertRules(t), map[string]bool{}
	for _, test := range file.Tests {
		p := newPrometheus(t, test)
		answers := 0
		for at := time.Duration(0); answers < len(test.Asked); at += file.Interval {
			p.evaluate(t, rules, at)
			for _, a := range test.Asked {
				if a.At%file.Interval != 0 {
					t.Fatalf("%s: at %s nothing is evaluated, but each %s", test.Name, a.At, file.Interval)
				}
				if a.At != at {
					continue
				}
				answers++
				var want, have []string
				for _, w := range a.Want {
					l, err := p.parser.ParseMetric(w.Labels)
					if err != nil {
						t.Fatalf("%s: %v", test.Name, err)
					}
					want = append(want, promql.Sample{Metric: l, T: at.Milliseconds(), F: w.Value}.String())
					seen[l.Get("alertname")] = true
				}
				for _, s := range p.query(t, a.Expr, at) {
					have = append(have, s.String())
				}
				slices.Sort(want)
				slices.Sort(have)
				if !slices.Equal(have, want) {
					t.Errorf("%s: at %s %s is\n%q, want\n%q", test.Name, at, a.Expr, have, want)
				}
			}
		}
	}
	for _, r := range rules {
		if !seen[r.Alert] {
			t.Errorf("no test sees %s fire", r.Alert)
		}
	}
}

// A prometheus has series and evaluates alerts.
type prometheus struct {
	parser parser.Parser
	engine *promql.Engine
	series map[string]*promql.Series
	began  map[string]time.Duration // alerts that are active
	told   map[string]labels.Labels // series of ALERTS that go on
}

func newPrometheus(t *testing.T, test alertTest) *prometheus {
	t.Helper()
	p := &prometheus{parser: parser.NewParser(parser.Options{}), series: map[string]*promql.Series{}}
	p.engine = promql.NewEngine(promql.EngineOpts{MaxSamples: 1_000_000, Timeout: time.Minute, LookbackDelta: 5 * time.Minute, Parser: p.parser})
	t.Cleanup(func() { _ = p.engine.Close() })
	for _, s := range test.Series {
		l, values, err := p.parser.ParseSeriesDesc(s.Series + " " + s.Values)
		if err != nil {
			t.Fatalf("%s: %v", test.Name, err)
		}
		for i, v := range values {
			if !v.Omitted {
				p.add(l, time.Duration(i)*test.Interval, v.Value)
			}
		}
	}
	return p
}

func (p *prometheus) add(l labels.Labels, at time.Duration, v float64) {
	s := p.series[l.String()]
	if s == nil {
		s = &promql.Series{Metric: l}
		p.series[l.String()] = s
	}
	s.Floats = append(s.Floats, promql.FPoint{T: at.Milliseconds(), F: v})
}

func (p *prometheus) query(t *testing.T, expr string, at time.Duration) promql.Vector {
	t.Helper()
	find := func(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
		found := &found{at: -1}
		for _, s := range p.series {
			if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.Metric.Get(m.Name)) }) {
				found.series = append(found.series, promql.NewStorageSeries(*s))
			}
		}
		return found
	}
	series := &storage.MockQueryable{MockQuerier: &storage.MockQuerier{SelectMockFunction: find}}
	q, err := p.engine.NewInstantQuery(t.Context(), series, nil, expr, time.UnixMilli(at.Milliseconds()))
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	defer q.Close()
	vector, err := q.Exec(t.Context()).Vector()
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	return slices.Clone(vector)
}

// A found implements storage.SeriesSet.
type found struct {
	series []storage.Series
	at     int
}

func (f *found) Next() bool                      { f.at++; return f.at < len(f.series) }
func (f *found) At() storage.Series              { return f.series[f.at] }
func (*found) Err() error                        { return nil }
func (*found) Warnings() annotations.Annotations { return nil }

// evaluate writes which alerts there are, as Prometheus' rules do.
func (p *prometheus) evaluate(t *testing.T, rules []rule, at time.Duration) {
	t.Helper()
	began, told := map[string]time.Duration{}, map[string]labels.Labels{}
	for _, r := range rules {
		for _, s := range p.query(t, r.Expr, at) {
			b := labels.NewBuilder(s.Metric).Set("__name__", "ALERTS").Set("alertname", r.Alert)
			for name, v := range r.Labels {
				b.Set(name, v)
			}
			id := b.Labels().String()
			began[id] = at
			if before, ok := p.began[id]; ok {
				began[id] = before
			}
			state := "pending"
			if at-began[id] >= r.For {
				state = "firing"
			}
			l := b.Set("alertstate", state).Labels()
			told[l.String()] = l
			p.add(l, at, 1)
		}
	}
	for id, l := range p.told {
		if _, ok := told[id]; !ok {
			p.add(l, at, math.Float64frombits(value.StaleNaN))
		}
	}
	p.began, p.told = began, told
}

// TestTheGuideHasTheAlerts: docs/metrics.md has each alert as it is shipped, and no other,
// and of each metric what they select by.
func TestTheGuideHasTheAlerts(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	table, list, _ := strings.Cut(string(guide), "\n## Alerts\n")
	items, rows := map[string]string{}, map[string]string{}
	for _, item := range strings.Split(list, "\n- ")[1:] {
		items[strings.Split(item, "`")[1]] = strings.Join(strings.Fields(item), " ")
	}
	for line := range strings.Lines(table) {
		if strings.HasPrefix(line, "| `") {
			rows[strings.Split(line, "`")[1]] = line
		}
	}
	p := parser.NewParser(parser.Options{})
	for _, r := range alertRules(t) {
		want := "`" + strings.Join(strings.Fields(r.Expr), " ") + "`"
		if r.For > 0 {
			want += " for " + strings.TrimSuffix(r.For.String(), "0s")
		}
		if !strings.Contains(items[r.Alert], want) || r.Annotations["summary"] == "" || r.Labels["severity"] == "" {
			t.Errorf("%s is not as shipped in docs/metrics.md, or without summary or severity: want %s", r.Alert, want)
		}
		delete(items, r.Alert)
		expr, err := p.ParseExpr(r.Expr)
		if err != nil {
			t.Fatal(err)
		}
		parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
			s, ok := n.(*parser.VectorSelector)
			if !ok || !strings.HasPrefix(s.Name, "tiergate_") {
				return nil
			}
			row := rows[strings.TrimSuffix(s.Name, "_count")]
			for _, m := range s.LabelMatchers {
				for _, word := range append(strings.Split(m.Value, "|"), m.Name) {
					if m.Name != "__name__" && !strings.Contains(row, "`"+word+"`") || row == "" {
						t.Errorf("%s selects by %s, which docs/metrics.md does not have", r.Alert, m)
					}
				}
			}
			return nil
		})
	}
	if len(items) > 0 {
		t.Errorf("docs/metrics.md has alerts that are not shipped: %v", slices.Collect(maps.Keys(items)))
	}
}
