package envoyapi

import (
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tiergate/tiergate/internal/quota"
)

// The answers to what is allowed are written here as they go over the wire, byte by byte
// what the protobuf types would write: see allowed and answer.

// Numbers of fields.
const (
	checkStatus, checkOK, checkMetadata                                   = 1, 3, 4       // of a CheckResponse
	okUpstream, okRemove, okResponse                                      = 2, 5, 6       // of an OkHttpResponse
	limitCode, limitStatuses, limitResponse, limitUpstream, limitMetadata = 1, 2, 3, 4, 6 // of a RateLimitResponse
)

// ready are the headers of a facet, encoded once: for external authorization, and for the
// rate limit service.
type ready struct {
	checkUpstream, checkResponse []byte
	limitUpstream, limitResponse []byte
}

func prepare(s *Settings) map[facet]ready {
	all := map[facet]ready{}
	for tier := range s.Plans {
		for resource := range s.Resources.names {
			for _, priority := range quota.Priorities() {
				f := facet{tier, resource, priority}
				var r ready
				for _, h := range f.appendUpstream(nil) {
					r.checkUpstream, r.limitUpstream = appendOption(r.checkUpstream, okUpstream, h), appendHeader(r.limitUpstream, limitUpstream, h)
				}
				for _, h := range f.appendResponse(nil) {
					r.checkResponse, r.limitResponse = appendOption(r.checkResponse, okResponse, h), appendHeader(r.limitResponse, limitResponse, h)
				}
				all[f] = r
			}
		}
	}
	return all
}

// answerSize is how long an answer is as a rule, or less.
const answerSize = 1024

// encodeAllowed returns the CheckResponse of a request that is allowed.
func encodeAllowed(v *Verdict, s *Settings) []byte {
	var space [answerSize]byte
	var counts [8]header
	common := s.ready[v.facet()]
	ok := append(appendOption(space[:0], okUpstream, v.keyID()), common.checkUpstream...)
	if !s.ForwardCredentials {
		for _, name := range s.KeyHeaders {
			ok = appendBytes(ok, okRemove, name)
		}
	}
	for _, h := range v.appendCounts(counts[:0], s) {
		ok = appendOption(ok, okResponse, h)
	}
	ok = append(ok, common.checkResponse...)
	b := make([]byte, 0, len(ok)+len(v.Ticket)+64)
	b = appendBytes(b, checkStatus, "") // OK
	b = appendTicket(b, checkMetadata, v.Ticket)
	return appendBytes(b, checkOK, ok)
}

// encodeAnswer returns the RateLimitResponse to a call of so many descriptors that is
// allowed.
func encodeAnswer(v *Verdict, s *Settings, descriptors int) []byte {
	var space [answerSize]byte
	var status [64]byte
	var counts [8]header
	common := s.ready[v.facet()]
	b := appendNumber(space[:0], limitCode, uint64(rlsv3.RateLimitResponse_OK))
	one := appendStatus(status[:0], v)
	for range descriptors {
		b = appendBytes(b, limitStatuses, one)
	}
	for _, h := range v.appendCounts(counts[:0], s) {
		b = appendHeader(b, limitResponse, h)
	}
	b = append(b, common.limitResponse...)
	b = append(appendHeader(b, limitUpstream, v.keyID()), common.limitUpstream...)
	b = appendTicket(b, limitMetadata, v.Ticket)
	return append(make([]byte, 0, len(b)), b...)
}

// appendStatus adds the fields of a DescriptorStatus; see descriptorStatus.
func appendStatus(b []byte, v *Verdict) []byte {
	b = appendNumber(b, 1, uint64(rlsv3.RateLimitResponse_OK))
	limit, remaining, ok := v.told()
	if !ok {
		return b
	}
	name, most, unit := limit.Name(), uint64(upTo32(limit.Max)), uint64(unit(limit.Window)) //nolint:gosec // not negative
	b = appendTag(b, 2, sizeNumber(most)+sizeNumber(unit)+sizeText(name))
	b = appendText(appendNumber(appendNumber(b, 1, most), 2, unit), 3, name)
	b = appendNumber(b, 3, uint64(upTo32(remaining)))
	left := v.untilEnd(limit)
	seconds, nanos := uint64(left/time.Second), uint64(left%time.Second) //nolint:gosec // windows end later than now
	b = appendTag(b, 4, sizeNumber(seconds)+sizeNumber(nanos))
	return appendNumber(appendNumber(b, 1, seconds), 2, nanos)
}

// appendOption adds a HeaderValueOption that replaces what is there by the header's name.
func appendOption(b []byte, field protowire.Number, h header) []byte {
	const action = uint64(corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	inner := sizeText(h.name) + sizeText(h.value)
	b = appendTag(b, field, 1+protowire.SizeVarint(uint64(inner))+inner+sizeNumber(action)) //nolint:gosec // not negative
	return appendNumber(appendHeader(b, 1, h), 3, action)
}

// appendHeader adds a HeaderValue.
func appendHeader(b []byte, field protowire.Number, h header) []byte {
	b = appendTag(b, field, sizeText(h.name)+sizeText(h.value))
	return appendText(appendText(b, 1, h.name), 2, h.value)
}

// appendTicket adds what ticketMetadata is, if there is a ticket.
func appendTicket(b []byte, field protowire.Number, ticket string) []byte {
	if ticket == "" {
		return b
	}
	value := sizeText(ticket)
	entry := sizeText(reservationField) + 1 + protowire.SizeVarint(uint64(value)) + value //nolint:gosec // not negative
	b = appendTag(b, field, 1+protowire.SizeVarint(uint64(entry))+entry)                  //nolint:gosec // likewise
	b = appendText(appendTag(b, 1, entry), 1, reservationField)
	return appendText(appendTag(b, 2, value), 3, ticket)
}

// appendTag begins a field of so many bytes.
func appendTag(b []byte, field protowire.Number, size int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.BytesType), uint64(size)) //nolint:gosec // not negative
}

// appendBytes adds a field of bytes, empty ones too.
func appendBytes[T string | []byte](b []byte, field protowire.Number, value T) []byte {
	return append(appendTag(b, field, len(value)), value...)
}

// appendText adds a text unless it is empty.
func appendText(b []byte, field protowire.Number, text string) []byte {
	if text == "" {
		return b
	}
	return appendBytes(b, field, text)
}

// sizeText is how many bytes appendText adds.
func sizeText(text string) int {
	if text == "" {
		return 0
	}
	return 1 + protowire.SizeBytes(len(text)) // all numbers of fields are below 16
}

// appendNumber adds a number unless it is 0.
func appendNumber(b []byte, field protowire.Number, n uint64) []byte {
	if n == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}

// sizeNumber is how many bytes appendNumber adds.
func sizeNumber(n uint64) int {
	if n == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(n)
}
