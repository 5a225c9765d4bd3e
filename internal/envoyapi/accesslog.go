package envoyapi

import (
	"cmp"
	"context"
	"errors"
	"io"
	"iter"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/tiergate/tiergate/internal/quota"
)

// AccessLog is the gRPC access log service, envoy.service.accesslog.v3. It settles
// what the entries report and ignores those without a reservation.
type AccessLog struct {
	alsv3.UnimplementedAccessLogServiceServer

	gate     *Gate
	draining chan struct{}
	once     sync.Once
	slots    chan struct{} // one is held for each ticket that is being settled
}

// NewAccessLog returns the service that settles with the gate.
func NewAccessLog(g *Gate) *AccessLog {
	return &AccessLog{gate: g, draining: make(chan struct{}), slots: make(chan struct{}, atOnceInAll)}
}

// Drain ends the streams, which would otherwise last as long as the Envoys do. What
// has arrived is settled before.
func (a *AccessLog) Drain() { a.once.Do(func() { close(a.draining) }) }

const (
	// atOnce is how many tickets of a stream are settled at the same time, and
	// atOnceInAll how many of all streams. Further ones wait in Envoy: nothing more is read
	// of a stream that is behind.
	atOnce      = 32
	atOnceInAll = 512
	// quiet is how long nothing must come for a draining stream to be answered; after
	// drainTime it is, whatever comes. Envoy then ends it and opens another. What it has sent
	// until it hears of that it sends to nobody else: so it is received for drainTime more.
	quiet     = 100 * time.Millisecond
	drainTime = time.Second
)

// stream receives entries until Envoy closes the stream or the service drains.
func (a *AccessLog) stream(stream grpc.ServerStream) error {
	if !a.gate.settings.Load().Tokens.SettleByAccessLog {
		return errNotByAccessLog
	}
	// Envoy does not wait for an answer, so what has arrived is settled in any case.
	ctx := context.WithoutCancel(stream.Context())
	var group errgroup.Group
	group.SetLimit(atOnce)
	answer := func() error {
		_ = group.Wait()                                         // nothing returns an error
		return stream.SendMsg(&alsv3.StreamAccessLogsResponse{}) //nolint:wrapcheck // a status
	}
	err := a.receive(stream, answer, func(reports []answered) {
		a.slots <- struct{}{} // it gets free: no settlement takes longer than a call of the store
		group.Go(func() error {
			defer func() { <-a.slots }()
			for _, r := range reports {
				a.settle(ctx, r)
			}
			return nil
		})
	})
	_ = group.Wait()
	return err
}

// errNotByAccessLog ends a stream that nobody asked for.
var errNotByAccessLog = status.Error(codes.FailedPrecondition, "access logs settle nothing here: add access_log to tokens.settle_by")

// receive hands on what entries report, that of a ticket together, until the stream ends or settling
// by access log is switched off. It answers when the stream is at its end, or the service drains and
// nothing comes any more.
func (a *AccessLog) receive(stream grpc.ServerStream, answer func() error, handle func([]answered)) error {
	left := make(chan struct{})
	defer close(left)
	messages, ended := incoming(stream, left)
	draining := a.draining
	idle, end := time.NewTimer(quiet), time.NewTimer(drainTime)
	defer idle.Stop()
	defer end.Stop()
	var over, late <-chan time.Time // not before draining
	told := false
	for {
		select {
		case reports := <-messages:
			if !a.gate.settings.Load().Tokens.SettleByAccessLog {
				return errNotByAccessLog
			}
			for same := range byTicket(reports) {
				handle(same)
			}
			idle.Reset(quiet)
			continue
		case err := <-ended:
			switch {
			case told || stream.Context().Err() != nil:
				return nil
			case errors.Is(err, io.EOF):
				return answer()
			}
			return err
		case <-draining:
			draining, over, late = nil, idle.C, end.C
			idle.Reset(quiet)
			end.Reset(drainTime)
			continue
		case <-over:
		case <-late:
		}
		if told {
			return nil
		}
		told, over = true, nil
		_ = answer() // who has gone does not hear it, but what was sent before is received
		end.Reset(drainTime)
	}
}

// incoming receives what a stream's messages report until it ends, at the latest when the
// call returns, or nobody takes them any more. What has arrived is handed on though the stream has
// been reset since.
func incoming(stream grpc.ServerStream, left <-chan struct{}) (<-chan []answered, <-chan error) {
	messages := make(chan []answered)
	ended := make(chan error, 1)
	go func() {
		for {
			reports, err := receiveLog(stream)
			if err != nil {
				ended <- err
				return
			}
			select {
			case messages <- reports:
			case <-left:
				return
			}
		}
	}()
	return messages, ended
}

// byTicket yields what a message reports of each ticket, in the order of the entries: it is settled in
// that order.
func byTicket(reports []answered) iter.Seq[[]answered] {
	slices.SortStableFunc(reports, func(a, b answered) int { return strings.Compare(a.ticket, b.ticket) })
	return func(yield func([]answered) bool) {
		for len(reports) > 0 {
			n := 1
			for n < len(reports) && reports[n].ticket == reports[0].ticket {
				n++
			}
			if !yield(reports[:n]) {
				return
			}
			reports = reports[n:]
		}
	}
}

// settle settles one entry. What fails is lost: a store that is away keeps it by itself.
func (a *AccessLog) settle(ctx context.Context, report answered) {
	defer func() {
		if recover() != nil { // it would end the program; the value might quote the entry
			a.gate.observer.Settled(ctx, SettlementReport{By: byAccessLog, Result: Lost, Used: quota.Unknown, Err: errPanicked})
		}
	}()
	_ = a.gate.settle(ctx, a.gate.settings.Load(), &report) // it has been reported
}

var errPanicked = errors.New("settling panicked: please report this")

// The filters that decide, under whose names Envoy hands back tickets.
const (
	authzFilter     = "envoy.filters.http.ext_authz"
	rateLimitFilter = "envoy.filters.http.ratelimit"
)

// reported reads what an entry says of a request that has a reservation.
func reported(e *accesslogv3.HTTPAccessLogEntry) (answered, bool) {
	common := e.GetCommonProperties()
	metadata := common.GetMetadata().GetFilterMetadata()
	ticket := func(filter string) string { return text(metadata[filter].GetFields()[reservationField]) }
	response := e.GetResponse()
	r := answered{
		ticket: cmp.Or(ticket(rateLimitFilter), ticket(authzFilter)),
		by:     byAccessLog, status: int(response.GetResponseCode().GetValue()), details: response.GetResponseCodeDetails(),
		bytes: int64(min(response.GetResponseBodyBytes(), math.MaxInt64)), //nolint:gosec // not above MaxInt64
		media: response.GetResponseHeaders()["content-type"],
	}
	if r.ticket == "" || intermediate(common.GetAccessLogType()) {
		return r, false
	}
	flags := common.GetResponseFlags()
	r.cached = flags.GetResponseFromCacheFilter()
	r.faulty = flags != nil && !proto.Equal(flags, &accesslogv3.ResponseFlags{ResponseFromCacheFilter: r.cached})
	counted := metadataCounts(metadata[UsageNamespace].GetFields())
	r.usage = counted.usage()
	if typed := common.GetMetadata().GetTypedFilterMetadata()[tokenUsageNamespace]; typed != nil && r.usage == quota.NoUsage() {
		r.unpackUsage(typed)
	}
	return r, true
}

// intermediate reports whether an entry is written before the end of its answer, as Envoy does where
// access_log_options say so: the one at the end is to come.
func intermediate(t accesslogv3.AccessLogType) bool {
	switch t { //nolint:exhaustive // the others are written at the end, or of no HTTP request
	case accesslogv3.AccessLogType_DownstreamStart, accesslogv3.AccessLogType_DownstreamPeriodic, accesslogv3.AccessLogType_DownstreamTunnelSuccessfullyEstablished,
		accesslogv3.AccessLogType_UpstreamPoolReady, accesslogv3.AccessLogType_UpstreamPeriodic:
		return true
	}
	return false
}
