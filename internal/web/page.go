package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"net/http"
	"path"
	"time"
)

//go:embed page
var page embed.FS

const htmlType = "text/html; charset=utf-8"

// sharedAssets are the files that every dashboard needs.
func sharedAssets() []string {
	return []string{
		"shared.css", "shared.js", "charts.js", "limits.js", "usage.js", "refused.js", "signin.js", "icon.svg",
		"uplot/uPlot.iife.min.js", "uplot/uPlot.min.css", "uplot/LICENSE",
	}
}

// An asset is a file of the pages.
type asset struct {
	content []byte
	kind    string // its media type
	tag     string // of its content, as in the header ETag
}

// newAsset reads a file below page.
func newAsset(name string) (asset, error) {
	content, err := page.ReadFile("page/" + name)
	if err != nil {
		return asset{}, fmt.Errorf("read a file of the dashboard: %w", err)
	}
	kinds := map[string]string{
		".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
	}
	kind := kinds[path.Ext(name)]
	if kind == "" {
		kind = "text/plain; charset=utf-8"
	}
	sum := sha256.Sum256(content)
	return asset{content, kind, `"` + hex.EncodeToString(sum[:16]) + `"`}, nil
}

// newAssets reads files below page, by name.
func newAssets(names ...string) (map[string]asset, error) {
	assets := make(map[string]asset, len(names))
	for _, name := range names {
		a, err := newAsset(name)
		if err != nil {
			return nil, err
		}
		assets[name] = a
	}
	return assets, nil
}

// serveAssets serves files by their names. Browsers keep them and ask whether they are
// still the same.
func serveAssets(assets map[string]asset) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, known := assets[r.URL.Path]
		if !known {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", a.kind)
		w.Header().Set("ETag", a.tag)
		w.Header().Set("Cache-Control", "no-cache")
		http.ServeContent(w, r, r.URL.Path, time.Time{}, bytes.NewReader(a.content))
	})
}

// secured tells browsers to take everything from the same place and nothing from within
// the page, and not to keep or show it elsewhere.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "+
			"form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin") // with no-referrer, browsers send forms with Origin: null
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}
