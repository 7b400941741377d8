#!/usr/bin/env node
import { keepCompiledCode } from "./compiled-code.js";

// Before anything else is loaded, of which the compiled code would be kept.
keepCompiledCode();
// The files are CommonJS, which has no await here: a failure is uncaught, and ends the process.
void import("./command-line.js").then(({ runCommandLine }) => runCommandLine());
