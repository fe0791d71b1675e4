//go:build root && !soak

package main

const scale = 1
