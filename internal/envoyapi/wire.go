package envoyapi

import (
	"encoding/binary"
	"math"
	"strings"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protowire"
)

// What is read of messages here is read as the protobuf types do it: the last value of a
// field holds, and so does the last entry of a map with a key; messages that come in parts
// are merged. What is not read is not looked at. What is unusual is left to those types:
// a field that is not of its kind, text that is no UTF-8, what ends too early.

// fields walk through a message.
type fields struct {
	rest   string
	number uint64
	kind   protowire.Type
	text   string // of a field of protowire.BytesType, or the eight bytes of one of protowire.Fixed64Type
	value  uint64 // of one of protowire.VarintType
	odd    bool   // it is left to the protobuf types
}

// next goes to the next field, if there is one.
func (f *fields) next() bool {
	if f.rest == "" || f.odd {
		return false
	}
	tag := f.varint()
	f.number, f.kind = tag>>3, protowire.Type(tag&7)
	switch f.kind {
	case protowire.VarintType:
		f.value = f.varint()
	case protowire.BytesType:
		f.text = f.take(f.varint())
	case protowire.Fixed64Type:
		f.text = f.take(8)
	case protowire.Fixed32Type:
		f.take(4)
	case protowire.StartGroupType, protowire.EndGroupType:
		f.odd = true
	default:
		f.odd = true
	}
	f.odd = f.odd || f.number < uint64(protowire.MinValidNumber) || f.number > uint64(protowire.MaxValidNumber)
	return !f.odd
}

// varint takes a number, of ten bytes at the most.
func (f *fields) varint() uint64 {
	var n uint64
	for i := range min(len(f.rest), 10) {
		b := f.rest[i]
		n |= uint64(b&0x7f) << (7 * i)
		if i == 9 && b > 1 { // more than 64 bits
			break
		}
		if b < 0x80 {
			f.rest = f.rest[i+1:]
			return n
		}
	}
	f.odd = true
	return 0
}

// take takes so many bytes.
func (f *fields) take(n uint64) string {
	if f.odd || n > uint64(len(f.rest)) {
		f.odd = true
		return ""
	}
	text := f.rest[:n]
	f.rest = f.rest[n:]
	return text
}

// message returns the field as one that holds others, to walk through.
func (f *fields) message() fields {
	f.odd = f.odd || f.kind != protowire.BytesType
	return fields{rest: f.text, odd: f.odd}
}

// string returns the field as text.
func (f *fields) string() string {
	f.odd = f.odd || f.kind != protowire.BytesType || !utf8.ValidString(f.text)
	return f.text
}

// uint64 returns the field as a number.
func (f *fields) uint64() uint64 {
	f.odd = f.odd || f.kind != protowire.VarintType
	return f.value
}

// entry returns the field as an entry of a map with texts.
func (f *fields) entry() (key, value string) {
	e := f.message()
	for e.next() {
		switch e.number {
		case 1:
			key = e.string()
		case 2:
			value = e.string()
		}
	}
	f.odd = f.odd || e.odd
	return key, value
}

// maxWanted is how many request headers are looked for in a message as it came.
const maxWanted = 8

// A checkCall is what is read of a CheckRequest.
type checkCall struct {
	resource         string // of the context extensions
	id, method, path string
	headers          [maxWanted]string // those that are wanted, in order
	metadata         string            // a Metadata, encoded
	facts            factTexts         // that stand in it
}

// read reads a CheckRequest, or reports that it is unusual. wanted are names of headers, at
// most maxWanted.
func (c *checkCall) read(text string, wanted []string) bool {
	request := fields{rest: text}
	for request.next() {
		if request.number != 1 {
			continue
		}
		attributes := request.message()
		for attributes.next() {
			switch attributes.number {
			case 4: // request
				if !c.readRequest(attributes.message(), wanted) {
					return false
				}
			case 10: // context_extensions
				if key, value := attributes.entry(); key == "resource" {
					c.resource = value
				}
			case 11: // metadata_context
				part := attributes.message().rest
				if c.metadata != "" && part != "" { // to join parts takes the square of their number
					return false
				}
				c.metadata += part
			}
		}
		if attributes.odd {
			return false
		}
	}
	return !request.odd
}

func (c *checkCall) readRequest(request fields, wanted []string) bool {
	for request.next() {
		if request.number != 2 { // http
			continue
		}
		http := request.message()
		for http.next() {
			switch http.number {
			case 1:
				c.id = http.string()
			case 2:
				c.method = http.string()
			case 3: // headers
				key, value := http.entry()
				for i, name := range wanted {
					if key == name {
						c.headers[i] = value
					}
				}
			case 4:
				c.path = http.string()
			case 13: // header_map: there may be several values of a header
				return false
			}
		}
		if http.odd {
			return false
		}
	}
	return !request.odd
}

// inquiry asks what the call asks, or reports that it is unusual.
func (c *checkCall) inquiry(s *Settings) (inquiry, bool) {
	if !c.facts.read(c.metadata) {
		return inquiry{}, false
	}
	metadata := &corev3.Metadata{}
	if s.Identity.KeyID.Namespace != "" && unmarshal(c.metadata, metadata, maxFields) != nil {
		return inquiry{}, false
	}
	// The ID outlives the call, and is not to keep all of the message.
	return checkFields{
		resource: c.resource, id: strings.Clone(c.id), method: c.method, path: c.path, metadata: metadata, facts: c.facts.of,
		header: func(name string) string {
			for i, wanted := range s.wanted {
				if wanted == name {
					return c.headers[i]
				}
			}
			return ""
		},
	}.inquiry(s), true
}

// read reads the facts in an encoded Metadata, or reports that it is unusual.
func (t *factTexts) read(metadata string) bool {
	m := fields{rest: metadata}
	for m.next() {
		if m.number != 1 { // filter_metadata
			continue
		}
		if namespace, facts := m.entryOf(); namespace == RequestNamespace {
			*t = factTexts{}
			if !facts.eachText(t.set) {
				return false
			}
		}
	}
	return !m.odd
}

// eachText walks through a Struct and hands on what text returns of each of its fields, or
// reports that it is unusual.
func (f *fields) eachText(set func(name, text string)) bool {
	for f.next() {
		if f.number != 1 { // fields
			continue
		}
		name, value := f.entryOf()
		text := value.valueText()
		if value.odd {
			return false
		}
		set(name, text)
	}
	return !f.odd
}

// entryOf returns the field as an entry of a map with messages.
func (f *fields) entryOf() (key string, value fields) {
	e, values := f.message(), 0
	for e.next() {
		switch e.number {
		case 1:
			key = e.string()
		case 2:
			value = e.message()
			values++
		}
	}
	f.odd = f.odd || e.odd || values > 1 // a value in parts
	return key, value
}

// valueText returns what text returns of a Value.
func (f *fields) valueText() string {
	text, kinds := "", 0
	for f.next() {
		switch f.number {
		case 2:
			f.odd = f.odd || f.kind != protowire.Fixed64Type
			if !f.odd {
				text = formatNumber(math.Float64frombits(binary.LittleEndian.Uint64([]byte(f.text))))
			}
		case 3:
			text = f.string()
		}
		kinds++
	}
	f.odd = f.odd || kinds > 1 // the last would hold
	return text
}

// A limitCall is what is read of a RateLimitRequest.
type limitCall struct {
	domain      string
	descriptors int
	hits        uint64 // hits_addend
	described   description
}

// read reads a RateLimitRequest that decides and whose descriptors have entries alone, no
// more than there may be, or reports that it is unusual.
func (c *limitCall) read(text string, s *RateLimitSettings) bool {
	request, entries := fields{rest: text}, 0
	for request.next() {
		switch request.number {
		case 1:
			c.domain = request.string()
		case 2:
			c.descriptors++
			descriptor := request.message()
			for descriptor.next() {
				if descriptor.number != 1 {
					return false
				}
				entries++
				key, value := descriptor.entry()
				c.described.add(&s.Entries, key, value)
			}
			if descriptor.odd {
				return false
			}
		case 3:
			if c.hits = request.uint64(); c.hits>>32 != 0 {
				return false
			}
		}
	}
	return !request.odd && c.domain == s.Domain && c.descriptors <= s.MaxDescriptors && entries <= entriesOfDescriptor*s.MaxDescriptors
}

// inquiry asks what the call asks.
func (c *limitCall) inquiry(s *RateLimitSettings) inquiry {
	q := c.described.inquiry()
	q.take(c.hits, c.hits > 0, s.HitsMetric)
	return q
}
