#!/usr/bin/env node
import { keepCompiledCode } from "./compiled-code.js";

// Before anything else is loaded, of which the compiled code would be kept.
keepCompiledCode();
await import("./command-line.js");
