package quota

import (
	"testing"
)

func TestReserve(t *testing.T) {
	t.Parallel()
	rules := TokenRules{MaxInput: 1000, Output: 300, MaxOutput: 4000}
	capped := rules
	capped.Cap = 500
	for name, c := range map[string]struct {
		body              Body
		rules             TokenRules
		learnt            int64
		weight            float64
		declared          int64
		input, out, total int64
		from              Source
	}{
		"no body":                    {body: Body{Bytes: 0, Read: true, Declared: 7}, from: ByNothing},
		"declared":                   {body: Body{Bytes: 401, Read: true, Declared: 200}, declared: 200, input: 101, total: 101, from: ByDeclaration},
		"declared, several answers":  {body: Body{Bytes: 4, Read: true, Declared: 200, Choices: 3}, declared: 600, input: 1, total: 1, from: ByDeclaration},
		"declared, capped":           {body: Body{Bytes: 4, Read: true, Declared: 9000}, rules: capped, declared: 500, input: 1, total: 1, from: ByDeclaration},
		"declared, below the cap":    {body: Body{Bytes: 4, Read: true, Declared: 200}, rules: capped, declared: 200, input: 1, total: 1, from: ByDeclaration},
		"declared, model counts two": {body: Body{Bytes: 40, Read: true, Declared: 200}, weight: 2, declared: 400, input: 20, total: 20, from: ByDeclaration},
		"declared as nothing":        {body: Body{Bytes: 4, Read: true, Declared: 0}, input: 1, total: 1, from: ByDeclaration},
		"declared beyond reason":     {body: Body{Bytes: 4, Read: true, Declared: 1 << 62, Choices: 1 << 62}, declared: MaxCost, input: 1, total: 1, from: ByDeclaration},
		"nothing known":              {body: Body{Bytes: 4, Read: true, Declared: Unknown}, learnt: Unknown, input: 1, out: 300, total: 301, from: ByDefault},
		"learnt":                     {body: Body{Bytes: 4, Read: true, Declared: Unknown, Choices: 2}, learnt: 50, input: 1, out: 100, total: 101, from: ByHistory},
		"learnt as nothing":          {body: Body{Bytes: 4, Read: true, Declared: Unknown}, learnt: 0, input: 1, total: 1, from: ByHistory},
		"padded until it is unread":  {body: Body{Bytes: 1 << 40, Declared: 1}, learnt: 50, input: 1000, out: 4000, total: 5000, from: ByMaximum},
		"in the background":          {body: Body{Bytes: 4, Read: true, Declared: Unknown, Choices: 2, Background: true}, learnt: 50, input: 1, out: 8000, total: 8001, from: ByMaximum},
		"in the background, bounded": {body: Body{Bytes: 4, Read: true, Declared: 200, Background: true}, declared: 200, input: 1, total: 1, from: ByDeclaration},
		"of unknown length":          {body: Body{Bytes: Unknown, Read: true, Declared: 1}, declared: 1, input: 1000, total: 1000, from: ByDeclaration},
	} {
		if c.rules == (TokenRules{}) {
			c.rules = rules
		}
		if c.weight == 0 {
			c.weight = 1
		}
		declared, estimate, from := c.body.Reserve(c.rules, c.learnt, c.weight)
		if declared.OutputTokens != c.declared || declared.Tokens != c.declared || declared.InputTokens != 0 {
			t.Errorf("%s: declared %+v, want %d", name, declared, c.declared)
		}
		if estimate.InputTokens != c.input || estimate.OutputTokens != c.out || estimate.Tokens != c.total || from != c.from {
			t.Errorf("%s: estimate %+v by %s, want %d + %d = %d by %s", name, estimate, from, c.input, c.out, c.total, c.from)
		}
	}
}

func TestUsageCost(t *testing.T) {
	t.Parallel()
	one := Weights{Model: 1, CachedInput: 1}
	for name, c := range map[string]struct {
		usage               Usage
		weights             Weights
		total, input, outpu int64
	}{
		"nothing":              {NoUsage(), one, Unknown, Unknown, Unknown},
		"both":                 {Usage{10, Unknown, 5, Unknown}, one, 15, 10, 5},
		"all":                  {Usage{10, 4, 5, 15}, one, 15, 10, 5},
		"a larger total":       {Usage{10, Unknown, 5, 22}, one, 22, 10, 5},
		"a smaller total":      {Usage{10, Unknown, 5, 3}, one, 15, 10, 5},
		"embeddings":           {Usage{10, Unknown, Unknown, 10}, one, 10, 10, 0},
		"without the prompt":   {Usage{Unknown, Unknown, 5, 15}, one, 15, 10, 5},
		"a total below one":    {Usage{Unknown, Unknown, 5, 3}, one, 5, 0, 5},
		"a total below both":   {Usage{10, Unknown, Unknown, 3}, one, 10, 10, 0},
		"the answer alone":     {Usage{Unknown, Unknown, 5, Unknown}, one, Unknown, Unknown, 5},
		"the total alone":      {Usage{Unknown, Unknown, Unknown, 9}, one, 9, Unknown, Unknown},
		"the prompt alone":     {Usage{10, Unknown, Unknown, Unknown}, one, Unknown, 10, Unknown},
		"cached, left out":     {Usage{10, 4, 5, 15}, Weights{Model: 1}, 11, 6, 5},
		"none said cached":     {Usage{10, Unknown, 5, 15}, Weights{Model: 1}, 15, 10, 5},
		"cached of no prompt":  {Usage{Unknown, 4, Unknown, 9}, Weights{Model: 1}, 9, Unknown, Unknown},
		"cached, a tenth":      {Usage{10, 4, 5, 15}, Weights{Model: 1, CachedInput: 0.1}, 12, 7, 5},
		"a dear model":         {Usage{10, Unknown, 5, 15}, Weights{Model: 1.5, CachedInput: 1}, 23, 15, 8},
		"more cached than is":  {Usage{10, 400, 5, 15}, Weights{Model: 1}, 5, 0, 5},
		"more than can be":     {Usage{1 << 50, Unknown, 5, Unknown}, one, MaxCost, MaxCost, 5},
		"nothing was produced": {Usage{0, 0, 0, 0}, one, 0, 0, 0},
	} {
		if have, want := c.usage.Cost(c.weights), (Cost{1, c.total, c.input, c.outpu}); have != want {
			t.Errorf("%s: %+v, want %+v", name, have, want)
		}
	}
}
