package envoyapi

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	aiv3 "github.com/envoyproxy/go-control-plane/envoy/data/ai/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"golang.org/x/sync/errgroup"
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
}

// NewAccessLog returns the service that settles with the gate.
func NewAccessLog(g *Gate) *AccessLog { return &AccessLog{gate: g, draining: make(chan struct{})} }

// Drain ends the streams, which would otherwise last as long as the Envoys do. What
// has arrived is settled before.
func (a *AccessLog) Drain() { a.once.Do(func() { close(a.draining) }) }

const (
	// atOnce is how many entries of a stream are settled at the same time.
	atOnce = 32
	// quiet is how long nothing must come for a draining stream to be at its end.
	quiet = 100 * time.Millisecond
	// settleTries is how often a settlement of unknown outcome is tried: within some
	// three seconds, for a Redis that fails over. Later ones are lost, and their
	// reservations stand.
	settleTries = 6
	firstPause  = 100 * time.Millisecond
)

// StreamAccessLogs receives entries until Envoy closes the stream or the service
// drains.
func (a *AccessLog) StreamAccessLogs(stream alsv3.AccessLogService_StreamAccessLogsServer) error {
	if !a.gate.settings.Load().Tokens.SettleByAccessLog {
		return status.Error(codes.FailedPrecondition, "access logs settle nothing here: add access_log to tokens.settle_by")
	}
	// Envoy does not wait for an answer, so what has arrived is settled in any case.
	ctx := context.WithoutCancel(stream.Context())
	var group errgroup.Group
	group.SetLimit(atOnce)
	err := a.receive(stream, func(e *accesslogv3.HTTPAccessLogEntry) {
		if report, ok := reported(e); ok {
			group.Go(func() error {
				a.settle(ctx, report)
				return nil
			})
		}
	})
	_ = group.Wait() // nothing returns an error
	if err != nil {
		return err
	}
	return stream.SendAndClose(&alsv3.StreamAccessLogsResponse{})
}

// receive hands on entries until the stream ends, or nothing comes while draining.
func (a *AccessLog) receive(stream alsv3.AccessLogService_StreamAccessLogsServer, handle func(*accesslogv3.HTTPAccessLogEntry)) error {
	messages := make(chan *alsv3.StreamAccessLogsMessage)
	ended := make(chan error, 1)
	go func() { // ends with the stream, at the latest when this call returns
		for {
			m, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case messages <- m:
			case <-stream.Context().Done():
				ended <- stream.Context().Err()
				return
			}
		}
	}()
	draining := a.draining
	idle := time.NewTimer(quiet)
	defer idle.Stop()
	for {
		var over <-chan time.Time
		if draining == nil {
			over = idle.C
		}
		select {
		case m := <-messages:
			for _, e := range m.GetHttpLogs().GetLogEntry() {
				handle(e)
			}
			idle.Reset(quiet)
		case err := <-ended:
			if errors.Is(err, io.EOF) || stream.Context().Err() != nil {
				return nil
			}
			return err
		case <-draining:
			draining = nil
			idle.Reset(quiet)
		case <-over:
			return nil
		}
	}
}

// settle tries until the outcome is known.
func (a *AccessLog) settle(ctx context.Context, report answered) {
	pause := firstPause
	for range settleTries {
		if a.gate.settle(ctx, a.gate.settings.Load(), &report) == nil {
			return
		}
		timer := time.NewTimer(pause)
		<-timer.C
		pause *= 2
	}
}

// reported reads what an entry says of a request that has a reservation.
func reported(e *accesslogv3.HTTPAccessLogEntry) (answered, bool) {
	common := e.GetCommonProperties()
	metadata := common.GetMetadata().GetFilterMetadata()
	r := answered{by: byAccessLog, status: int(e.GetResponse().GetResponseCode().GetValue()), details: e.GetResponse().GetResponseCodeDetails()}
	for _, filter := range []string{"envoy.filters.http.ext_authz", "envoy.filters.http.ratelimit"} {
		if t := metadata[filter].GetFields()[reservationField].GetStringValue(); t != "" {
			r.ticket = t
		}
	}
	if r.ticket == "" {
		return r, false
	}
	flags := common.GetResponseFlags()
	r.cached = flags.GetResponseFromCacheFilter()
	r.faulty = flags != nil && !proto.Equal(flags, &accesslogv3.ResponseFlags{ResponseFromCacheFilter: r.cached})
	r.usage = readUsage(metadataCounts(metadata[UsageNamespace].GetFields()))
	if typed := common.GetMetadata().GetTypedFilterMetadata()[tokenUsageNamespace]; typed != nil && r.usage == quota.NoUsage() {
		var u aiv3.TokenUsage
		if typed.UnmarshalTo(&u) == nil {
			r.usage = typedUsage(&u)
		}
	}
	return r, true
}
