package store

import (
	"sync"
	"sync/atomic"
)

// names numbers the names of counters, which many counters share: what is kept of each then
// has no pointer, and the garbage collector passes over it. It forgets none, since no
// client makes them: they come from the configuration, overrides of keys, and a snapshot. It is safe for
// concurrent use.
type names struct {
	list    atomic.Pointer[[]string] // by number
	numbers sync.Map                 // uint32 by string
	adding  sync.Mutex
}

func newNames() *names {
	n := &names{}
	n.list.Store(&[]string{})
	return n
}

// all returns the names, by number.
func (n *names) all() []string { return *n.list.Load() }

// number returns the number of a name.
func (n *names) number(name string) uint32 {
	if number, ok := n.numbers.Load(name); ok {
		return number.(uint32) //nolint:forcetypeassert // there is nothing else
	}
	n.adding.Lock()
	defer n.adding.Unlock()
	if number, ok := n.numbers.Load(name); ok {
		return number.(uint32) //nolint:forcetypeassert // there is nothing else
	}
	list := append(n.all(), name)   // whoever has the former list does not see it
	number := uint32(len(list) - 1) //nolint:gosec // there are not so many
	n.list.Store(&list)
	n.numbers.Store(name, number)
	return number
}
