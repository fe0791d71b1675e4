//go:build root && soak

package main

const scale = 10 // of TestDemoNetwork
