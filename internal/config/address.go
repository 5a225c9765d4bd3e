package config

import (
	"net"
	"net/netip"
)

// distinct checks that no two listeners are at one address.
func (c *checker) distinct(grpc, operator, customer Address) {
	differ := func(path string, a Address, other string, b Address) {
		if a.overlaps(b) {
			c.fault(path, "address %q is that of %s, %q: want another port", a, other, b)
		}
	}
	differ("operator.address", operator, "grpc.address", grpc)
	differ("customer.address", customer, "grpc.address", grpc)
	differ("customer.address", customer, "operator.address", operator)
}

// overlaps reports whether only one of two can listen: the port is the same, and so is the
// host, or one of the two is every address of the machine. Port 0 is any that is free.
func (a Address) overlaps(b Address) bool {
	hostA, portA, errA := net.SplitHostPort(a.Address)
	hostB, portB, errB := net.SplitHostPort(b.Address)
	if a.Network != "tcp" || b.Network != "tcp" || errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	a1, a2 := ipOf(hostA), ipOf(hostB)
	return hostA == hostB || (a1.IsValid() && a1 == a2) || a1.IsUnspecified() || a2.IsUnspecified()
}

// ipOf returns the address of a host: none of a name, but of localhost. Go listens at all
// addresses of both kinds where it is told 0.0.0.0 or nothing.
func ipOf(host string) netip.Addr {
	switch host {
	case "":
		return netip.IPv6Unspecified()
	case "localhost":
		host = "127.0.0.1"
	}
	ip, _ := netip.ParseAddr(host) // a name has none
	return ip.Unmap()
}
