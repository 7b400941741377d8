/** Runs in a thread of its own (`copy-threads.ts`). */

import { serve } from "../threads/thread-side.js";
import { CopyService } from "./copy-service.js";

serve(new CopyService());
