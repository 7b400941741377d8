/** Runs in a thread of its own (`verify-threads.ts`). */
import { answerQuestions } from "../threads/thread-side.js";
import { VerifyService } from "./verify-service.js";

answerQuestions(new VerifyService());
