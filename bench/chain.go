package main

import (
	"errors"
	"time"
)

// A chain makes the calls of a worker in a closed loop. Whoever reads the answer to one begins
// the next: a goroutine that waited for each would take CPU from what is measured.
type chain struct {
	*worker

	next func() (due time.Time, ok bool)
	done func()
}

// chains makes calls in a closed loop, as many at a time as there are outcomes, until next says that
// there is no more.
func (g *generator) chains(outcomes []*outcome, next func() (due time.Time, ok bool)) *outcome {
	return together(outcomes, func(i int, o *outcome, done func()) {
		c := &chain{newWorker(g, i, o), next, done}
		c.stream.then = c.answered
		c.begin(true)
	})
}

// begin begins the next call, or says that there is none. Who reads the connection does not
// wait until the server takes it.
func (c *chain) begin(wait bool) {
	for due, ok := c.next(); ok; due, ok = c.next() {
		c.prepare(due)
		if c.start(wait) {
			return
		}
	}
	c.done()
}

// start starts the call that is prepared, or has another goroutine do so that can wait. It
// reports whether somebody goes on from there.
func (c *chain) start(wait bool) bool {
	conn := c.g.conns[c.conn]
	err := conn.start(c.stream, c.g.load.protocol.method(), conn.timeout, c.request, wait)
	if errors.Is(err, errBusy) {
		go func() {
			if !c.start(true) {
				c.begin(true)
			}
		}()
		return true
	}
	if err != nil {
		c.take(nil, err)
	}
	return err == nil
}

// answered goes on after a call.
func (c *chain) answered() {
	entry := c.take(c.stream.result())
	if entry == nil {
		c.begin(false)
		return
	}
	err := c.g.log(c.conn, entry, false)
	if errors.Is(err, errBusy) {
		go func() {
			c.settled(c.g.log(c.conn, entry, true))
			c.begin(true)
		}()
		return
	}
	c.settled(err)
	c.begin(false)
}
