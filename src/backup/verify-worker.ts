/** Runs in a thread of its own (`verify-threads.ts`). */
import { serve } from "./thread-service.js";
import { VerifyService } from "./verify-service.js";

serve(new VerifyService());
