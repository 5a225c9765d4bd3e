package store

import (
	"encoding/binary"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// A record is a reservation as a Memory keeps it. There is one for every admitted request
// of the last seconds, so it is packed: one piece of memory without pointers, half as large
// as a reservation and nothing for the garbage collector to follow.
type record struct {
	packed  packed
	expires int64 // Unix ms
	settled bool
}

// packed is what never changes of a reservation: the time in Unix ns as 8 bytes, the
// account, the request and the secret, each after its length, and the charges, each with the
// number of its counter's name; of one whose window slides, what was used in the one before
// comes last. Numbers are varints.
type packed string

// An opened record is what is packed in it. Its texts are parts of that.
type opened struct {
	at                       int64 // Unix ns
	account, request, secret string
	charges                  packed // to be read one after the other
}

// timeSize is how many bytes the time takes.
const timeSize = 8

// pack packs a reservation, which has no charges yet.
func pack(to []byte, at int64, account, request, secret string) []byte {
	to = binary.LittleEndian.AppendUint64(to, uint64(at)) //nolint:gosec // the same bits
	return packText(packText(packText(to, account), request), secret)
}

func packText(to []byte, s string) []byte {
	return append(binary.AppendVarint(to, int64(len(s))), s...)
}

// packCharge adds a charge of a counter whose name has that number.
func packCharge(to []byte, name uint32, c reserved) []byte {
	to = append(to, byte(c.metric))
	for _, n := range [...]int64{int64(name), int64(c.window), c.max, c.start, c.cost, c.used} {
		to = binary.AppendVarint(to, n)
	}
	if c.window.Sliding() {
		to = binary.AppendVarint(to, c.before)
	}
	return to
}

// at returns the time in Unix ns.
func (p packed) at() int64 {
	return int64(binary.LittleEndian.Uint64([]byte(p[:timeSize]))) //nolint:gosec // the same bits
}

// open unpacks all but the charges. There is nothing in the record of no request.
func (r record) open() opened {
	if r.packed == "" {
		return opened{}
	}
	rest := r.packed[timeSize:]
	o := opened{at: r.packed.at(), account: rest.text(), request: rest.text(), secret: rest.text()}
	o.charges = rest
	return o
}

// of reports whether it is the record of this request.
func (o opened) of(account, request string) bool {
	return o.request == request && o.account == account
}

func (o opened) time() time.Time { return time.Unix(0, o.at).UTC() }

// charge takes the next charge off.
func (p *packed) charge(names []string) reserved {
	c := reserved{metric: quota.Metric((*p)[0])}
	*p = (*p)[1:]
	c.counter = names[p.number()]
	c.window, c.max, c.start, c.cost, c.used = quota.Window(p.number()), p.number(), p.number(), p.number(), p.number()
	if c.window.Sliding() {
		c.before = p.number()
	}
	return c
}

// text takes a text off.
func (p *packed) text() string {
	n := p.number()
	s := (*p)[:n]
	*p = (*p)[n:]
	return string(s)
}

// number takes a varint off.
func (p *packed) number() int64 {
	n, size := binary.Varint([]byte(*p))
	*p = (*p)[size:]
	return n
}
