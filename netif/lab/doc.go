// Package lab builds a small network out of Linux namespaces, for tests that need a real kernel and for the demo: one bridge, and nodes
// that are connected to it by a veth each, with own network, mounts and processes. Nothing else may use it.
//
// A Lab lives in its own network, mount and PID namespace, and in a user namespace unless it is started by root, so no root is needed where the
// system allows that (Check says). Each Node has namespaces of its own inside. A threaded process cannot enter a user namespace, so the
// program executes itself anew: Main, called first in main or TestMain, is where the copies go on, as agents: one for the lab, one in each
// node, which start commands when they are told to over a socket.
//
// In a node /etc is a private copy with own resolv.conf, nsswitch.conf ("hosts: files dns") and hosts; /run/dbus, /run/systemd/resolve and
// /run/nscd are empty, so that nothing asks the machine's own resolver; all other files are the machine's.
//
// Nothing is left behind, however the program ends: the lab's agent is the first process of a PID namespace and dies with the program, and the
// kernel then ends all processes in it and takes away namespaces, mounts and interfaces. No file is written outside.
package lab
