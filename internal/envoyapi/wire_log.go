package envoyapi

import (
	"cmp"
	"math"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tiergate/tiergate/internal/quota"
)

// readLog reads what a StreamAccessLogsMessage reports of requests that have a reservation,
// or says that it is unusual.
func readLog(text string) (all []answered, usual bool) {
	log := fields{rest: text}
	for log.next() {
		switch log.number {
		case 2: // http_logs
			entries := log.message()
			for entries.next() {
				if entries.number != 1 { // log_entry
					continue
				}
				var e logEntry
				if !e.read(entries.message()) {
					return nil, false
				}
				if report, ok := e.reported(); ok {
					all = append(all, report)
				}
			}
			if entries.odd {
				return nil, false
			}
		case 3: // tcp_logs, which take the place of others
			return nil, false
		}
	}
	return all, !log.odd
}

// A logEntry is what is read of an HTTPAccessLogEntry.
type logEntry struct {
	answered

	authz, rateLimit string // tickets, of the filters that decide
	counted          counts
	typed            string // an Any that holds a TokenUsage, encoded
	kind             accesslogv3.AccessLogType
}

// read reads an entry, or reports that it is unusual.
func (e *logEntry) read(entry fields) bool {
	e.counted = noCounts()
	for entry.next() {
		switch entry.number {
		case 1: // common_properties
			if !e.readCommon(entry.message()) {
				return false
			}
		case 4: // response
			if !e.readResponse(entry.message()) {
				return false
			}
		}
	}
	return !entry.odd
}

func (e *logEntry) readCommon(common fields) bool {
	for common.next() {
		switch common.number {
		case 16: // response_flags
			if !e.readFlags(common.message()) {
				return false
			}
		case 17: // metadata
			if !e.readMetadata(common.message()) {
				return false
			}
		case 33: // access_log_type
			e.kind = accesslogv3.AccessLogType(int32(common.uint64())) //nolint:gosec // as the types cut it
		}
	}
	return !common.odd
}

// readFlags reads ResponseFlags. Each but that of the cache says that the answer did not end
// as it should; one that is there and not set may be one that the types do not know, for
// which it is enough to be there.
func (e *logEntry) readFlags(flags fields) bool {
	for flags.next() {
		switch {
		case flags.number == 21: // response_from_cache_filter
			if flags.kind != protowire.VarintType {
				return false
			}
			e.cached = flags.value != 0
		case flags.kind == protowire.VarintType && flags.value == 0:
			return false
		default:
			e.faulty = true
		}
	}
	return !flags.odd
}

func (e *logEntry) readMetadata(metadata fields) bool {
	for metadata.next() {
		switch metadata.number {
		case 1: // filter_metadata
			namespace, values := metadata.entryOf()
			if !e.readNamespace(namespace, values) {
				return false
			}
		case 2: // typed_filter_metadata
			if namespace, value := metadata.entryOf(); namespace == tokenUsageNamespace {
				e.typed = value.rest
			}
		}
	}
	return !metadata.odd
}

// readNamespace reads the values of a namespace, which take the place of those before.
func (e *logEntry) readNamespace(namespace string, values fields) bool {
	switch namespace {
	case UsageNamespace:
		e.counted = noCounts()
		return values.eachText(func(name, text string) { e.counted.set(name, tokens(text)) })
	case authzFilter, rateLimitFilter:
		ticket := ""
		usual := values.eachText(func(name, text string) {
			if name == reservationField {
				ticket = text
			}
		})
		if namespace == authzFilter {
			e.authz = ticket
		} else {
			e.rateLimit = ticket
		}
		return usual
	default:
		return !values.odd
	}
}

// readResponse reads HTTPResponseProperties.
func (e *logEntry) readResponse(response fields) bool {
	for response.next() {
		switch response.number {
		case 1: // response_code
			code := response.message()
			for code.next() {
				if code.number == 1 { // value
					e.status = int(uint32(code.uint64())) //nolint:gosec // as the types cut it
				}
			}
			if code.odd {
				return false
			}
		case 3: // response_body_bytes
			e.bytes = int64(min(response.uint64(), math.MaxInt64)) //nolint:gosec // not above MaxInt64
		case 4: // response_headers
			if name, value := response.entry(); name == "content-type" {
				e.media = value
			}
		case 6: // response_code_details
			e.details = response.string()
		}
	}
	return !response.odd
}

// reported returns what the entry says of a request that has a reservation.
func (e *logEntry) reported() (answered, bool) {
	// It may wait for Redis, and is not to keep all of the message.
	if e.ticket = strings.Clone(cmp.Or(e.rateLimit, e.authz)); e.ticket == "" || intermediate(e.kind) {
		return answered{}, false
	}
	e.by, e.usage = byAccessLog, e.counted.usage()
	if e.typed != "" && e.usage == quota.NoUsage() {
		var typed anypb.Any
		if proto.Unmarshal([]byte(e.typed), &typed) == nil {
			e.unpackUsage(&typed)
		}
	}
	return e.answered, true
}
