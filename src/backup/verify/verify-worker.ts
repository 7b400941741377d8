/** Runs in a thread of its own (`verify-threads.ts`). */
import { serve } from "../threads/thread-side.js";
import { VerifyService } from "./verify-service.js";

serve(new VerifyService());
