/** Runs in a thread of its own (`copy-threads.ts`). */
import { CopyService } from "./copy-service.js";
import { serve } from "./thread-service.js";

serve(new CopyService());
