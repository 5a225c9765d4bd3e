// Package web serves HTTP: for operators, metrics, health, readiness, the admin API and
// their dashboard; for the holders of keys, what they have used and may use.
//
// It does not know Envoy, nor how anything is counted.
package web

import (
	"context"
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// OperatorOptions are the parts of the operators' port. All are needed.
type OperatorOptions struct {
	Metrics prometheus.Gatherer
	Ready   func(context.Context) (note string, err error) // why it does not count, or what to know of how it does
	Admin   *Admin
}

// Operator returns the handler of the operators' port. GET /metrics, /healthz (the
// process lives) and /readyz (it serves, and how; 503 says why not) are for everyone. The admin
// API, below AdminPath, and the dashboard, to which / leads, are for the holders of
// tokens; without any, for callers on this machine. It is an error if a file of the
// dashboard cannot be read, which a test rules out.
func Operator(o OperatorOptions) (http.Handler, error) {
	pages, err := newOperatorPages(o.Admin)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, "ok") // nobody to tell if the caller is gone
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		note, err := o.Ready(r.Context())
		if err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		if note != "" {
			note = ", " + note
		}
		_, _ = fmt.Fprintln(w, "ready"+note)
	})
	mux.Handle(AdminPath+"/", o.Admin.Handler())
	dashboard := pages.handler()
	mux.Handle("GET /{$}", dashboard)
	mux.Handle(dashboardPath, dashboard)
	mux.Handle(dashboardPath+"/", dashboard)
	return mux, nil
}
