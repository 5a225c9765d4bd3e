package store

import (
	"slices"
	"strconv"
	"time"

	"github.com/tiergate/tiergate/internal/usage"
)

// mostPlans is how many are kept for later calls of a batch.
const mostPlans = 1000

// A plan says which fields of which blocks cells are in. Most accounts of a batch have
// cells of the same minute and resource, and so the same plan.
type plan struct {
	number int // in the call that is put together, from 1; 0: it is not in it yet
	blocks []planBlock
	places []fieldPlace // of each cell in turn, six: in the blocks of minutes, hours and days, of its label and of all
	args   []any
}

type planBlock struct {
	name   string // "minutes:988912"
	ends   time.Time
	fields []string
}

// A fieldPlace is that of a field among those of a plan.
type fieldPlace struct{ block, field int }

// plan returns the plan of cells.
func (c *accountsCall) plan(cells []usage.Cell) *plan {
	var text [64]byte
	what := text[:0]
	for i := range cells {
		what = strconv.AppendInt(what, minuteTime(cells[i].Minute, c.now).Unix()/60, 10)
		what = append(append(append(what, ' '), cells[i].Label...), separator...)
	}
	p := c.known[string(what)]
	if p == nil {
		p = &plan{}
		for i := range cells {
			p.add(minuteTime(cells[i].Minute, c.now), cells[i].Label)
		}
		p.args = p.arguments(c.now)
		if len(c.known) >= mostPlans {
			clear(c.known)
		}
		c.known[string(what)] = p
	}
	if p.number == 0 {
		c.plans = append(c.plans, p)
		p.number = len(c.plans)
	}
	return p
}

// add appends the places of a cell.
func (p *plan) add(at time.Time, label string) {
	for _, b := range pointBlocks() {
		n := b.number(at)
		name := b.name + ":" + strconv.FormatInt(n, 10)
		i := slices.IndexFunc(p.blocks, func(known planBlock) bool { return known.name == name })
		if i < 0 {
			i = len(p.blocks)
			p.blocks = append(p.blocks, planBlock{name: name, ends: b.ends(n)})
		}
		slot := strconv.FormatInt(b.slot(at), 10)
		p.places = append(p.places, fieldPlace{i, p.blocks[i].field(slot + " " + label)}, fieldPlace{i, p.blocks[i].field(slot)})
	}
}

// field returns the number of a field, from 0, which may be new.
func (b *planBlock) field(name string) int {
	i := slices.Index(b.fields, name)
	if i < 0 {
		i = len(b.fields)
		b.fields = append(b.fields, name)
	}
	return i
}

// arguments returns what a call says of the plan.
func (p *plan) arguments(now time.Time) []any {
	args := []any{len(p.blocks)}
	first := make([]int, len(p.blocks)) // place of each block's first field, from 1
	fields := 0
	for i := range p.blocks {
		b := &p.blocks[i]
		first[i] = fields + 1
		fields += len(b.fields)
		args = append(args, seconds(b.ends.Sub(now)), len(b.fields))
		for _, name := range b.fields {
			args = append(args, name)
		}
	}
	args = append(args, len(p.places)/6)
	for _, at := range p.places {
		args = append(args, first[at.block]+at.field)
	}
	return args
}
