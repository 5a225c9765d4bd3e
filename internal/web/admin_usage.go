package web

import (
	"strings"

	"github.com/tiergate/tiergate/internal/quota"
)

// series answers with the usage of a key, in the shape of the customers' GET /v1/usage
// and for the same parameters.
func (a *Admin) series(c *call) (any, error) {
	wanted, err := parseUsageRequest(c.URL.RawQuery, c.now)
	if err != nil {
		return nil, wrongParameter(err)
	}
	r, err := c.record()
	if err != nil {
		return nil, err
	}
	points, err := a.usage.Series(c.Context(), r.ID, wanted.Query)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what and why, for the answer
	}
	view := wanted.view(points)
	view.KeyID = r.ID
	return view, nil
}

// wrongParameter is the problem of parameters that parseSeries cannot read.
func wrongParameter(err error) *Problem {
	parameter, wrong, named := strings.Cut(err.Error(), ": ")
	if !named {
		parameter, wrong = "", err.Error()
	}
	return invalid([]Fault{{parameter, wrong}})
}

// limits answers with every limit of a key, and what is used of it, in the shape of the
// customers' GET /v1/limits.
func (a *Admin) limits(c *call) (any, error) {
	if err := c.query().end(); err != nil {
		return nil, err
	}
	r, err := c.record()
	if err != nil {
		return nil, err
	}
	plan := c.accounts.Plans[r.Tier]
	if plan == nil {
		return nil, problem(kindNoTier, "the configuration has no tier "+r.Tier+": add it, or give the key another")
	}
	s, err := a.limiter.States(c.Context(), quota.Request{Account: r.ID, Tier: plan, Overrides: r.Overrides}, c.now)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what and why, for the answer
	}
	return viewOfLimits(r, standing{s, r.Granted(plan.Tier.Priority)}), nil
}

// refusals answers with the latest refusals of a key, the latest first.
func (a *Admin) refusals(c *call) (any, error) {
	if err := c.query().end(); err != nil {
		return nil, err
	}
	r, err := c.record()
	if err != nil {
		return nil, err
	}
	refusals, err := a.usage.Refusals(c.Context(), r.ID)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what and why, for the answer
	}
	return viewOfRefusals(r.ID, refusals), nil
}
